package runtimes

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFindArchive(t *testing.T) {
	deb822 := "# comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n" +
		"Types: deb\nURIs: http://mirror.example/security\nSuites:\n bookworm-security\nComponents: main contrib\n"
	const oneLine = "# deb http://off.example/debian bookworm main\ndeb-src http://src.example/debian bookworm main\n" +
		"deb [arch=amd64 signed-by=/k.gpg] https://list.example/debian bookworm main contrib # yes\n"
	official := archive{Main: "http://deb.debian.org/debian", Security: "http://deb.debian.org/debian-security"}
	cases := []struct {
		name, mirror string
		files        map[string]string
		want         archive
	}{
		{"nothing set up", "", nil, official},
		{"an option", "http://m.example/x/debian/", map[string]string{"sources.list": oneLine}, archive{"http://m.example/x/debian", "http://m.example/x/debian-security"}},
		{"a snapshot", "http://s.example/archive/debian/20250101T000000Z", nil, archive{"http://s.example/archive/debian/20250101T000000Z", "http://s.example/archive/debian-security/20250101T000000Z"}},
		{"a mirror without security", "http://m.example/bookworm", nil, archive{Main: "http://m.example/bookworm"}},
		{"a path that only begins so", "http://m.example/debian-mirror", nil, archive{Main: "http://m.example/debian-mirror"}},
		{"deb822", "", map[string]string{"sources.list.d/d.sources": deb822}, archive{"http://mirror.example/debian", "http://mirror.example/security"}},
		{"one line", "", map[string]string{"sources.list": oneLine}, archive{"https://list.example/debian", "https://list.example/debian-security"}},
		{"disabled", "", map[string]string{"sources.list.d/d.sources": "Enabled: no\n" + deb822[10:]}, official},
		{"Ubuntu", "", map[string]string{"sources.list": "deb http://archive.ubuntu.example/ubuntu jammy main\n"}, official},
		{"a later Debian", "", map[string]string{"sources.list": "deb http://m.example/debian trixie main\n"}, archive{"http://m.example/debian", "http://m.example/debian-security"}},
		{"a later suite at a mirror of its own", "", map[string]string{"sources.list": "deb http://m.example/trixie trixie main\n"}, official},
		{"a file", "", map[string]string{"sources.list": "deb file:/srv/debian bookworm main\n"}, official},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "sources.list.d"), 0o755))
			for name, text := range c.files {
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
			}
			wantEqual(t, findArchive(c.mirror, dir, bookworm), c.want)
		})
	}
}

func TestParseAptSettings(t *testing.T) {
	s := parseAptSettings([]byte("Acquire \"\";\nAcquire::http::Proxy \"http://p.example:3142\";\nAcquire::Check-Valid-Until \"false\";\nDir \"/\";\n"))
	wantEqual(t, s, aptSettings{HTTPProxy: "http://p.example:3142", Options: []string{`Acquire::Check-Valid-Until "false"`}})
}

func TestNeededBytes(t *testing.T) {
	for line, want := range map[string]int64{
		"Need to get 24.1 MB of archives.": 24_100_000, "Need to get 800 kB/1,024 kB of archives.": 800_000, "Need to get 0 B/40.2 MB of archives.": 0,
	} {
		n, ok := neededBytes(line)
		wantEqual(t, ok, true)
		wantEqual(t, n, want)
	}
	for _, line := range []string{"", "Need to get", "Need to get x MB", "After this operation, 90 MB"} {
		if _, ok := neededBytes(line); ok {
			t.Errorf("%q has no size", line)
		}
	}
}
