# tool NAME MODULE@VERSION PACKAGE: prints where the tool is, after building it once into the cache. Read, not run.
tool() {
	dir=${TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly/tools}/$1-${2##*@}
	if [ ! -x "$dir/$1" ]; then
		echo "building $1 ${2##*@} (once, it takes minutes)" >&2
		GOFLAGS='' GOBIN=$dir go install "$3@${2##*@}" >&2
	fi
	printf '%s\n' "$dir/$1"
}

buf() { "$(tool buf buf@v1.75.0 github.com/bufbuild/buf/cmd/buf)" "$@"; }
golangci_lint() { "$(tool golangci-lint golangci-lint@v2.15.0 github.com/golangci/golangci-lint/v2/cmd/golangci-lint)" "$@"; }
