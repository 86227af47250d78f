package sandbox

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// run feeds events of the machine's present attempt and epoch, and collects effects.
func run(m Machine, kinds ...EventKind) (Machine, Effects) {
	var all Effects
	for _, k := range kinds {
		var e Effects
		m, e, _ = m.Step(Event{Kind: k, Attempt: m.Attempt, Epoch: m.Epoch, Grant: m.Grant})
		all |= e
	}
	return m, all
}

func TestUsualLife(t *testing.T) {
	m, e := NewMachine(true)
	if m.State != StateCreating || e != EffectCreate {
		t.Fatalf("start: %v %b", m.State, e)
	}
	for _, c := range []struct {
		kind  EventKind
		state State
		want  Effects
	}{
		{EventClaim, StateCreating, 0},
		{EventHello, StateCreating, 0},
		{EventCreated, StateLoading, EffectLoad},
		{EventReady, StateIdle, EffectClaimed},
		{EventInvoke, StateBusy, EffectSend},
		{EventAnswer, StateIdle, EffectOutcome},
		{EventInvoke, StateBusy, EffectSend},
		{EventDisconnect, StateBusy, EffectAwaitExit},
		{EventExit, StateDestroying, EffectInterrupt | EffectOutcome | EffectReport | EffectDestroy},
		{EventDestroyFailed, StateDestroying, EffectRetryDestroy},
		{EventDestroyed, StateGone, EffectGone},
	} {
		m, e = run(m, c.kind)
		if m.State != c.state || e != c.want {
			t.Fatalf("event %d: state %v effects %b, want %v %b", c.kind, m.State, e, c.state, c.want)
		}
	}
	if m.Init != OutcomeOK || m.Last != OutcomeExit {
		t.Fatalf("outcomes %d %d", m.Init, m.Last)
	}
}

func TestGenericIsClaimedLater(t *testing.T) {
	m, _ := NewMachine(false)
	m, _ = run(m, EventCreated, EventHello)
	if m.State != StateGeneric {
		t.Fatal(m.State)
	}
	m, e := run(m, EventClaim)
	if m.State != StateLoading || e != EffectPlace {
		t.Fatalf("%v %b", m.State, e)
	}
	if m, e = run(m, EventPlaced, EventReady); m.State != StateIdle || e != EffectLoad|EffectClaimed {
		t.Fatalf("%v %b", m.State, e)
	}
	if _, _, refusal := m.Step(Event{Kind: EventClaim}); refusal != RefusedBusy {
		t.Fatal("a second function may claim it")
	}
}

func TestInitIsRetriedOnce(t *testing.T) {
	for kind, outcome := range map[EventKind]Outcome{EventTimeout: OutcomeTimeout, EventExit: OutcomeExit} {
		t.Run(fmt.Sprint(outcome), func(t *testing.T) { retriedOnce(t, kind, outcome) })
	}
}

func retriedOnce(t *testing.T, kind EventKind, outcome Outcome) {
	t.Helper()
	m, _ := NewMachine(true)
	m, _ = run(m, EventClaim, EventCreated, EventHello)
	m, e := run(m, kind)
	if e != EffectInterrupt|EffectInitAgain|EffectDestroy || m.State != StateDestroying || m.Init != outcome {
		t.Fatalf("%v %b, init %d", m.State, e, m.Init)
	}
	m, e = run(m, EventDestroyed)
	if e != EffectCreate || m.State != StateCreating || m.Attempt != 2 {
		t.Fatalf("%v %b attempt %d", m.State, e, m.Attempt)
	}
	if late, e, _ := m.Step(Event{Kind: EventExit, Attempt: 1}); e != 0 || late.State != StateCreating {
		t.Fatal("the exit of the first container ended the second")
	}
	m, _ = run(m, EventCreated, EventHello)
	m, e = run(m, kind)
	if m.Init != outcome || !e.Has(EffectClaimed|EffectDestroy) {
		t.Fatalf("the second time: %d %b", m.Init, e)
	}
}

func TestReportedInitErrorIsFinal(t *testing.T) {
	m, _ := NewMachine(true)
	m, e := run(m, EventClaim, EventCreated, EventHello, EventInitFailed)
	if m.Init != OutcomeFailed || !e.Has(EffectClaimed|EffectReport|EffectDestroy) || e.Has(EffectInitAgain) {
		t.Fatalf("%d %b", m.Init, e)
	}
}

func TestLowerGrantIsRefused(t *testing.T) {
	m, _ := NewMachine(true)
	m, _, _ = m.Step(Event{Kind: EventClaim, Grant: Grant{2, 5}})
	m, _ = run(m, EventCreated, EventHello, EventReady)
	for _, g := range []Grant{{1, 9}, {2, 4}} {
		for _, k := range []EventKind{EventInvoke, EventDestroy} {
			if _, _, r := m.Step(Event{Kind: k, Grant: g}); r != RefusedStale {
				t.Fatalf("grant %v: %v", g, r)
			}
		}
	}
	if _, _, r := m.Step(Event{Kind: EventInvoke, Grant: Grant{2, 5}}); r != Accepted {
		t.Fatal("the same grant again was refused")
	}
}

func TestStaleTimeoutIsIgnored(t *testing.T) {
	m, _ := NewMachine(true)
	m, _ = run(m, EventClaim, EventCreated, EventHello, EventReady, EventInvoke)
	epoch := m.Epoch
	m, _ = run(m, EventAnswer, EventInvoke)
	if m, e, _ := m.Step(Event{Kind: EventTimeout, Epoch: epoch}); e != 0 || m.State != StateBusy {
		t.Fatal("the time-out of the invocation before ended this one")
	}
}

// world performs effects as an agent does, with faults before and after each one, and checks that no claim and no invocation
// is answered twice or never, and that no container is left.
type world struct {
	*rapid.T
	m           Machine
	queue       []Event
	containers  map[uint8]bool // by attempt
	claims      int
	claimsEnded int
	sent        int
	ended       int
	reports     int
	gone        bool
}

func (w *world) step(e Event) Refusal {
	before := w.m.Grant
	m, effects, refusal := w.m.Step(e)
	if w.gone && (effects != 0 || m.State != StateGone) {
		w.Fatalf("effects %b after the end", effects)
	}
	if m.Grant.Less(before) {
		w.Fatalf("grant fell from %v to %v", before, m.Grant)
	}
	if refusal != Accepted && (effects != 0 || m.State != w.m.State) {
		w.Fatalf("a refused request had effects %b", effects)
	}
	w.m = m
	w.perform(effects)
	return refusal
}

func (w *world) push(k EventKind) {
	w.queue = append(w.queue, Event{Kind: k, Attempt: w.m.Attempt, Epoch: w.m.Epoch, Exit: Exit{OOMKilled: rapid.Bool().Draw(w.T, "oom")}})
}

func (w *world) perform(effects Effects) {
	for f := Effects(1); f <= EffectGone; f <<= 1 {
		if effects.Has(f) {
			w.effect(f)
		}
	}
}

func (w *world) pick(label string, kinds ...EventKind) {
	w.push(rapid.SampledFrom(kinds).Draw(w.T, label))
}

func (w *world) effect(f Effects) {
	switch f {
	case EffectCreate:
		w.create()
	case EffectPlace:
		w.pick("place", EventPlaced, EventPlaceFailed, EventDisconnect, EventExit)
	case EffectLoad:
		w.pick("load", EventReady, EventInitFailed, EventDisconnect, EventTimeout, EventExit)
	case EffectSend:
		w.sent++
		if w.sent != w.ended+1 {
			w.Fatalf("two invocations at a time")
		}
		w.pick("send", EventAnswer, EventSendFailed, EventDisconnect, EventTimeout, EventExit)
	case EffectAwaitExit:
		w.pick("exit", EventExit, EventTimeout)
	case EffectClaimed:
		w.claimsEnded++
	case EffectOutcome:
		w.ended++
	case EffectReport:
		w.reports++
	case EffectDestroy, EffectRetryDestroy:
		w.destroy()
	case EffectGone:
		w.gone = true
	}
}

func (w *world) create() {
	if len(w.containers) != 0 {
		w.Fatalf("created beside a container: %v", w.containers)
	}
	switch rapid.IntRange(0, 4).Draw(w.T, "create") {
	case 0: // fails, nothing left
		w.push(EventCreateFailed)
	case 1: // the bootstrap is faster than the answer
		w.containers[w.m.Attempt] = true
		w.push(EventHello)
		w.push(EventCreated)
	case 2: // never says hello
		w.containers[w.m.Attempt] = true
		w.push(EventCreated)
		w.push(EventTimeout)
	default:
		w.containers[w.m.Attempt] = true
		w.push(EventCreated)
		w.push(EventHello)
	}
}

func (w *world) destroy() {
	switch rapid.IntRange(0, 3).Draw(w.T, "destroy") {
	case 0: // fails before it did anything
		w.push(EventDestroyFailed)
	case 1: // did it, but the answer was lost
		delete(w.containers, w.m.Attempt)
		w.push(EventDestroyFailed)
	default:
		delete(w.containers, w.m.Attempt)
		w.push(EventExit)
		w.push(EventDestroyed)
	}
}

// pump delivers some queued events, from anywhere in the queue.
func (w *world) pump(n int) {
	for range n {
		if len(w.queue) == 0 {
			return
		}
		i := rapid.IntRange(0, len(w.queue)-1).Draw(w.T, "next")
		e := w.queue[i]
		w.queue = append(w.queue[:i], w.queue[i+1:]...)
		if e.Kind == EventTimeout {
			e.Epoch = w.m.Epoch
		}
		w.step(e)
	}
}

func TestEveryLifeEnds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{T: rt, containers: map[uint8]bool{}}
		m, effects := NewMachine(rapid.Bool().Draw(rt, "prePlaced"))
		w.m = m
		w.perform(effects)
		for range rapid.IntRange(0, 60).Draw(rt, "steps") {
			w.request()
			w.pump(rapid.IntRange(0, 3).Draw(rt, "pump"))
			w.safe()
		}
		w.step(Event{Kind: EventKill})
		for i := 0; !w.gone && i < 1000; i++ {
			w.pump(1)
			if len(w.queue) == 0 && !w.gone {
				rt.Fatalf("stuck in %v", w.m.State)
			}
		}
		w.final()
	})
}

func (w *world) request() {
	g := Grant{rapid.Uint64Range(0, 2).Draw(w.T, "term"), rapid.Uint64Range(0, 2).Draw(w.T, "sequence")}
	switch rapid.IntRange(0, 9).Draw(w.T, "request") {
	case 0, 1:
		if w.step(Event{Kind: EventClaim, Grant: g}) == Accepted {
			w.claims++
		}
	case 2, 3, 4, 5:
		w.step(Event{Kind: EventInvoke, Grant: g})
	case 6:
		w.step(Event{Kind: EventDestroy, Grant: g})
	case 7:
		w.push(EventExit)
	}
}

func (w *world) safe() {
	if w.claims > 1 || w.claimsEnded > w.claims || w.ended > w.sent || w.reports > 1 {
		w.Fatalf("claims %d ended %d, sent %d ended %d, reports %d", w.claims, w.claimsEnded, w.sent, w.ended, w.reports)
	}
}

func (w *world) final() {
	w.safe()
	if !w.gone || len(w.containers) != 0 {
		w.Fatalf("gone %v, containers left %v, state %v", w.gone, w.containers, w.m.State)
	}
	if w.claims != w.claimsEnded || w.sent != w.ended || w.reports != 1 {
		w.Fatalf("claims %d ended %d, sent %d ended %d, reports %d", w.claims, w.claimsEnded, w.sent, w.ended, w.reports)
	}
}

func TestNames(t *testing.T) {
	if s := fmt.Sprint(StateGone, " ", RefusedGone); s != "gone it is being removed" {
		t.Fatal(s)
	}
}
