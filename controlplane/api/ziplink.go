package api

import (
	"path"
	"slices"
	"strings"
)

const (
	// maxLinkHops is how many links one path may go through, the kernel's limit.
	maxLinkHops = 40
	// maxLinkSteps bounds the work for all links of a package.
	maxLinkSteps = 2_000_000
)

// checkLinks follows every symbolic link as the kernel would and refuses those that lead outside the package.
func (t *tree) checkLinks() error {
	steps := 0
	for _, name := range sortedKeys(t.links) {
		w := walk{tree: t, steps: &steps}
		if problem := w.follow(name); problem != "" {
			return invalidCode("zip entry %.200q is a symbolic link to %.200q, which %s", name, t.links[name], problem)
		}
	}
	return nil
}

// walk is the resolution of one link.
type walk struct {
	tree *tree
	// at is the directory reached.
	at    []string
	hops  int
	steps *int
}

func (w *walk) follow(link string) (problem string) {
	// The parents of a link are directories: placeParents saw to it.
	if dir := path.Dir(link); dir != "." {
		w.at = strings.Split(dir, "/")
	}
	todo := []string{path.Base(link)}
	for len(todo) > 0 {
		part := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if *w.steps++; *w.steps > maxLinkSteps {
			return "is one of too many links"
		}
		target, problem := w.step(part)
		if problem != "" {
			return problem
		}
		if target != "" {
			todo = pushParts(todo, target)
		}
	}
	return ""
}

// step goes to one part of a path; it returns the target if that part is a link.
func (w *walk) step(part string) (target, problem string) {
	switch part {
	case "", ".":
		return "", ""
	case "..":
		if len(w.at) == 0 {
			return "", "leads outside the package"
		}
		w.at = w.at[:len(w.at)-1]
		return "", ""
	}
	here := append(slices.Clip(w.at), part)
	target, isLink := w.tree.links[strings.Join(here, "/")]
	if !isLink {
		w.at = here
		return "", ""
	}
	if w.hops++; w.hops > maxLinkHops {
		return "", "goes through too many links"
	}
	if target == "" || target[0] == '/' || strings.ContainsRune(target, 0) {
		return "", "is not a relative path"
	}
	return target, ""
}

// pushParts puts the parts of a path on a stack, the first on top.
func pushParts(stack []string, target string) []string {
	parts := strings.Split(target, "/")
	slices.Reverse(parts)
	return append(stack, parts...)
}
