package cli

import (
	"fmt"
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

// steps shows the progress of several things with named steps: a line that is redrawn on a terminal, else a line for each step.
type steps struct {
	app  *App
	last string
	bar  *progressbar.ProgressBar
	of   string
}

func (s *steps) show(p RuntimeProgress) {
	if s.app.global.quiet {
		return
	}
	if !s.app.showsProgress() || p.Total == 0 {
		s.line(p)
		return
	}
	if key := p.Runtime + p.Step; s.of != key {
		s.finish()
		s.of = key
		s.bar = progressbar.NewOptions64(p.Total, progressbar.OptionSetWriter(s.app.Stderr),
			progressbar.OptionSetDescription(fmt.Sprintf("%-11s %s", p.Runtime, p.Step)),
			progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false), progressbar.OptionThrottle(50*time.Millisecond))
	}
	_ = s.bar.Set64(min(p.Done, p.Total))
}

// line prints a step once, however often it reports.
func (s *steps) line(p RuntimeProgress) {
	text := fmt.Sprintf("%-11s %s", p.Runtime, p.Step)
	if text != s.last {
		s.finish()
		s.last = text
		fmt.Fprintln(s.app.Stderr, text)
	}
}

func (s *steps) finish() {
	if s.bar != nil {
		_ = s.bar.Finish()
		fmt.Fprintln(s.app.Stderr)
		s.bar, s.of = nil, ""
	}
}
