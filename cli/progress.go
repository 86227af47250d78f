package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows how far something is, on a terminal's stderr only.
type progress struct{ bar *progressbar.ProgressBar }

func (a *App) byteBar(what string, total int64) progress {
	if !a.showsProgress() {
		return progress{}
	}
	return progress{progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(a.Stderr), progressbar.OptionSetDescription(what), progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(30), progressbar.OptionThrottle(50*time.Millisecond), progressbar.OptionClearOnFinish())}
}

func (a *App) showsProgress() bool {
	return !a.global.quiet && a.terminal(a.Stderr)
}

// A bar that can't be drawn is no reason to stop: its errors are of no use.
func (p progress) add(n int64) {
	if p.bar != nil {
		_ = p.bar.Add64(n)
	}
}

func (p progress) finish() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// barResolution is how finely a bar divides one build.
const barResolution = 1000

// steps shows how builds proceed that run at once: one bar for all on a terminal, else a line for each step.
type steps struct {
	app *App

	mu sync.Mutex
	// done is how far each build is, in thousandths; last is the step that was shown of it.
	done map[string]int
	last map[string]string
	bar  *progressbar.ProgressBar
}

func newSteps(a *App, builds int) *steps {
	s := &steps{app: a, done: map[string]int{}, last: map[string]string{}}
	if a.showsProgress() {
		s.bar = progressbar.NewOptions(builds*barResolution,
			progressbar.OptionSetWriter(a.Stderr), progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false),
			progressbar.OptionThrottle(50*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return s
}

// show may be called by several goroutines.
func (s *steps) show(p RuntimeProgress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf("%-11s %s", p.Runtime, p.Step)
	switch {
	case s.app.global.quiet:
	case s.bar != nil:
		s.advance(p, text)
	case s.last[p.Runtime] != stage(text):
		s.last[p.Runtime] = stage(text)
		fmt.Fprintln(s.app.Stderr, text)
	}
}

// stage is a step without its figures, which would fill a log: "downloading packages" of "downloading packages: 1 of 9 MB".
func stage(text string) string {
	before, _, _ := strings.Cut(text, ": ")
	return before
}

// advance draws the bar; one that can't be drawn is no reason to stop.
func (s *steps) advance(p RuntimeProgress, text string) {
	s.done[p.Runtime] = int(p.Fraction * barResolution)
	total := 0
	for _, d := range s.done {
		total += d
	}
	s.bar.Describe(text)
	_ = s.bar.Set(total)
}

func (s *steps) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar != nil {
		_ = s.bar.Finish()
	}
}
