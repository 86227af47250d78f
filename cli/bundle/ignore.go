package bundle

import (
	"bufio"
	"fmt"
	"path"
	"strings"
)

// builtIn comes before the lines of .mayflyignore, which can take any of it back but the ignore file itself.
const builtIn = "/" + IgnoreFile + "\n.git\n__pycache__/\n"

// Ignore is a parsed .mayflyignore. Its language is that of .gitignore: the last matching line decides, "!" takes
// back, "/" at the start or within anchors to the folder, "/" at the end means folders only, "*" "?" "[a-z]" stay
// within one name, "**" crosses names. What is inside of a folder that is left out can't be taken back.
type Ignore struct {
	rules []rule
}

type rule struct {
	segments []string
	negated  bool
	dirOnly  bool
}

// ParseIgnore reads rules, one a line; lines that are empty or begin with "#" say nothing.
func ParseIgnore(text string) (*Ignore, error) {
	var ig Ignore
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		line := trimLine(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseRule(line)
		if err != nil {
			return nil, err
		}
		if len(r.segments) > 0 {
			ig.rules = append(ig.rules, r)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	return &ig, nil
}

// trimLine drops spaces at the end unless a backslash protects the last.
func trimLine(line string) string {
	trimmed := strings.TrimRight(line, " \t\r")
	if strings.HasSuffix(trimmed, `\`) && len(trimmed) < len(line) {
		return trimmed + " "
	}
	return trimmed
}

func parseRule(line string) (rule, error) {
	var r rule
	rest, negated := strings.CutPrefix(line, "!")
	r.negated = negated
	rest, r.dirOnly = strings.CutSuffix(rest, "/")
	anchored := strings.Contains(rest, "/")
	rest = strings.TrimPrefix(rest, "/")
	for s := range strings.SplitSeq(rest, "/") {
		if s == "" {
			continue
		}
		if _, err := path.Match(s, ""); err != nil {
			return rule{}, fmt.Errorf("the pattern %q is malformed: %w", line, err)
		}
		r.segments = append(r.segments, s)
	}
	if !anchored && len(r.segments) > 0 {
		r.segments = append([]string{"**"}, r.segments...)
	}
	return r, nil
}

// Match tells whether the slash-separated path, relative to the folder, is left out.
// It looks at the path alone: walking never enters a folder that is left out.
func (ig *Ignore) Match(name string, isDir bool) bool {
	if name == IgnoreFile {
		return true
	}
	segments := strings.Split(name, "/")
	ignored := false
	for _, r := range ig.rules {
		if (!r.dirOnly || isDir) && r.negated == ignored && matchSegments(r.segments, segments) {
			ignored = !r.negated
		}
	}
	return ignored
}

// matchSegments matches in time proportional to the product of the lengths, however many "**" there are.
func matchSegments(pattern, name []string) bool {
	// reach[i] tells whether the pattern so far matches the first i names.
	reach := make([]bool, len(name)+1)
	reach[0] = true
	for k, p := range pattern {
		next := make([]bool, len(name)+1)
		last := k == len(pattern)-1
		for i, ok := range reach {
			if !ok {
				continue
			}
			if p == "**" {
				spread(next, i, last && k > 0)
				continue
			}
			if i < len(name) && segmentMatches(p, name[i]) {
				next[i+1] = true
			}
		}
		reach = next
	}
	return reach[len(name)]
}

// spread lets "**" stand for any number of names from i on; at the end of a pattern ("a/**") for at least one.
func spread(next []bool, i int, atLeastOne bool) {
	if atLeastOne {
		i++
	}
	for ; i < len(next); i++ {
		next[i] = true
	}
}

func segmentMatches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}
