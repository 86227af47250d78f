package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

func rowNames() []string {
	return []string{"warm_c1", "warm_c32", "warm_c1_inproc", "warm_c32_inproc", "cold_empty"}
}

// run measures the rows that are asked for.
type run struct {
	o    options
	log  io.Writer
	bare string
	rows []row
}

// measure starts each kind of cluster once, for the rows that need it.
func (b *run) measure(ctx context.Context) error {
	bareURL, stop, err := startBare(ctx)
	if err != nil {
		return err
	}
	defer stop()
	b.bare = bareURL
	return errors.Join(
		b.on(ctx, startSplit, "warm_c1", "warm_c32"),
		b.on(ctx, startUp, "warm_c1_inproc", "warm_c32_inproc", "cold_empty"),
	)
}

// on starts a cluster and measures rows on it, unless none of them is asked for.
func (b *run) on(ctx context.Context, start func(context.Context, options, io.Writer) (*cluster, error), rows ...string) (err error) {
	rows = slices.DeleteFunc(rows, func(r string) bool { return !slices.Contains(b.o.rows, r) })
	if len(rows) == 0 {
		return nil
	}
	c, err := start(ctx, b.o, b.log)
	defer func() { err = errors.Join(err, c.stop()) }()
	if err != nil {
		return err
	}
	for _, name := range rows {
		if err := b.row(ctx, c, name); err != nil {
			return c.explain(fmt.Errorf("%s: %w", name, err))
		}
	}
	return nil
}

func (b *run) row(ctx context.Context, c *cluster, name string) error {
	fmt.Fprintf(b.log, "measuring %s\n", name)
	before := readCPU()
	var mayfly, bare sample
	var err error
	switch name {
	case "cold_empty":
		mayfly, bare, err = b.cold(ctx, c)
	case "warm_c32", "warm_c32_inproc":
		mayfly, bare, err = b.warm(ctx, c, 32)
	default:
		mayfly, bare, err = b.warm(ctx, c, 1)
	}
	if err != nil {
		return err
	}
	r := judge(name, budgetOf(name, b.o.ownShim), mayfly.figures(), bare.figures())
	r.Busy, r.Load = readCPU().since(before), loadAverage()
	b.rows = append(b.rows, r)
	return nil
}

// warm calls one function and the bare server in turn, so that both meet the same machine.
func (b *run) warm(ctx context.Context, c *cluster, callers int) (mayfly, bare sample, err error) {
	url, err := c.deploy(ctx, "bench")
	if err != nil {
		return mayfly, bare, err
	}
	if err := b.startSandboxes(ctx, url, callers); err != nil {
		return mayfly, bare, err
	}
	for i := range b.o.rounds {
		spec := clientSpec{Callers: callers, Duration: b.o.duration / time.Duration(b.o.rounds), Warmup: b.o.warmup, Body: answerBody}
		if i > 0 {
			spec.Warmup /= 4
		}
		for _, p := range []struct {
			url string
			sum *sample
		}{{b.bare, &bare}, {url, &mayfly}} {
			spec.URLs = []string{p.url}
			s, err := clientProcess(ctx, spec)
			if err != nil {
				return mayfly, bare, err
			}
			p.sum.add(s)
		}
	}
	return mayfly, bare, nil
}

// perSandbox is what the start of one takes when many start on two CPUs.
const perSandbox = 200 * time.Millisecond

// startSandboxes calls until there is one for each caller: what follows is warm.
func (b *run) startSandboxes(ctx context.Context, url string, callers int) error {
	_, err := clientProcess(ctx, clientSpec{
		URLs: []string{url}, Callers: callers, Warmup: b.o.warmup, Duration: min(time.Duration(callers)*perSandbox, 4*b.o.warmup), Body: answerBody,
	})
	return err
}

// cold calls functions that were never called before, each once, with the code on the node already.
func (b *run) cold(ctx context.Context, c *cluster) (mayfly, bare sample, err error) {
	bare, err = clientProcess(ctx, clientSpec{
		URLs: []string{b.bare}, Callers: 1, Warmup: b.o.warmup, Duration: b.o.duration, Body: answerBody,
	})
	for first := 0; first < b.o.cold && err == nil; first += coldBatch {
		var s sample
		s, err = b.coldBatch(ctx, c, first, min(first+coldBatch, b.o.cold))
		mayfly.add(s)
	}
	return mayfly, bare, err
}

// coldBatch is how many cold functions live at once: their sandboxes stay, and must fit into memory.
const coldBatch = 10

func (b *run) coldBatch(ctx context.Context, c *cluster, from, to int) (s sample, err error) {
	var names, urls []string
	for i := from; i < to; i++ {
		name := fmt.Sprintf("cold-%d", i)
		url, err := c.deploy(ctx, name)
		if err != nil {
			return s, err
		}
		names, urls = append(names, name), append(urls, url)
	}
	if s, err = clientProcess(ctx, clientSpec{URLs: urls, Callers: 1, Once: true, Body: answerBody}); err != nil {
		return s, err
	}
	for _, name := range names {
		if _, err := c.mayfly(ctx, "function", "delete", name); err != nil {
			return s, err
		}
	}
	return s, nil
}
