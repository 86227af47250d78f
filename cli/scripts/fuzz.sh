#!/bin/sh
# Runs every fuzz test of the repository for a while: fuzz.sh TIME.
set -eu
cd "$(dirname "$0")/../.."

grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u | while read -r dir; do
	grep -h -o '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | cut -d' ' -f2 | while read -r name; do
		echo "$dir $name"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$1" "$dir" </dev/null
	done
done
