package runtimes

import (
	"bufio"
	"bytes"
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debianURL is used unless a mirror is set or the host has one of its own.
const debianURL = "http://deb.debian.org/debian"

// archive is where packages come from. Security is empty if the mirror has no place for it.
type archive struct {
	Main     string
	Security string
}

// findArchive chooses the archive: the mirror that was asked for, the host's, or deb.debian.org.
func findArchive(mirror, etcApt, suite string) archive {
	if mirror != "" {
		return archiveAt(mirror)
	}
	if a := hostArchive(etcApt, suite); a.Main != "" {
		return a
	}
	return archiveAt(debianURL)
}

// archiveAt derives the security archive's URL as mirrors lay it out: …/debian-security beside …/debian.
func archiveAt(mirror string) archive {
	mirror = strings.TrimSuffix(mirror, "/")
	a := archive{Main: mirror}
	i := strings.LastIndex(mirror, "/debian")
	if i < 0 {
		return a
	}
	end := i + len("/debian")
	if end == len(mirror) || mirror[end] == '/' {
		a.Security = mirror[:end] + "-security" + mirror[end:]
	}
	return a
}

// hostArchive reads the host's sources of apt for ones of a suite, else for a mirror that has other releases of
// Debian: it has this one too. Main is empty if there is neither.
func hostArchive(etcApt, suite string) archive {
	var a archive
	var other string
	for _, s := range hostSources(etcApt) {
		u, err := url.Parse(s.uri)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || !slices.Contains(s.components, "main") {
			continue
		}
		uri := strings.TrimSuffix(s.uri, "/")
		if a.Main == "" && slices.Contains(s.suites, suite) {
			a.Main = uri
		}
		if a.Security == "" && slices.Contains(s.suites, suite+"-security") {
			a.Security = uri
		}
		if other == "" && strings.HasSuffix(uri, "/debian") && slices.ContainsFunc(s.suites, isRelease) {
			other = uri
		}
	}
	if a.Main == "" {
		a.Main = other
	}
	if a.Main != "" && a.Security == "" {
		a.Security = archiveAt(a.Main).Security
	}
	return a
}

// isRelease tells of the releases that have been on mirrors together with those of the images.
func isRelease(suite string) bool {
	return slices.Contains([]string{"bullseye", bookworm, trixie, "forky", "sid", "oldstable", "stable", "testing", "unstable"}, suite)
}

// source is an entry of sources.list.
type source struct {
	uri        string
	suites     []string
	components []string
}

func hostSources(etcApt string) []source {
	var all []source
	lists, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*.list")) // fails for bad patterns only
	for _, path := range append([]string{filepath.Join(etcApt, "sources.list")}, lists...) {
		if b, err := os.ReadFile(path); err == nil {
			all = append(all, parseOneLine(string(b))...)
		}
	}
	deb822, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*.sources")) // as above
	for _, path := range deb822 {
		if b, err := os.ReadFile(path); err == nil {
			all = append(all, parseDeb822(string(b))...)
		}
	}
	return all
}

// parseOneLine reads lines such as "deb [signed-by=FILE] URI SUITE COMPONENT…".
func parseOneLine(text string) []source {
	var all []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], " \t[") {
			continue
		}
		if _, after, found := strings.Cut(rest, "]"); found {
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			all = append(all, source{uri: f[0], suites: f[1:2], components: f[2:]})
		}
	}
	return all
}

// parseDeb822 reads paragraphs with the fields Types, URIs, Suites and Components.
func parseDeb822(text string) []source {
	var all []source
	fields := map[string][]string{}
	flush := func() {
		if slices.Contains(fields["types"], "deb") && !slices.Contains(fields["enabled"], "no") {
			for _, uri := range fields["uris"] {
				all = append(all, source{uri: uri, suites: fields["suites"], components: fields["components"]})
			}
		}
		fields = map[string][]string{}
	}
	var last string
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			fields[last] = append(fields[last], strings.Fields(line)...)
		default:
			name, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(name)
			fields[last] = strings.Fields(value)
		}
	}
	flush()
	return all
}

// aptSettings are the host's own settings of apt that a build follows: how to reach the network, and whether
// an archive that stands still is accepted.
type aptSettings struct {
	HTTPProxy, HTTPSProxy string
	// Options are passed on to apt, as in apt.conf.
	Options []string
}

func readAptSettings(ctx context.Context) aptSettings {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return aptSettings{} // mmdebstrap reports a missing apt
	}
	return parseAptSettings(out)
}

func parseAptSettings(dump []byte) aptSettings {
	var s aptSettings
	lines := bufio.NewScanner(bytes.NewReader(dump))
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimSuffix(lines.Text(), ";"), " ")
		value = strings.Trim(value, `"`)
		switch strings.ToLower(name) {
		case "acquire::http::proxy":
			s.HTTPProxy = value
		case "acquire::https::proxy":
			s.HTTPSProxy = value
		case "acquire::check-valid-until", "acquire::check-date":
			s.Options = append(s.Options, name+` "`+value+`"`)
		}
	}
	return s
}
