package sandbox

// Machine is the life of one sandbox. It is a value and pure: Step takes what happened and says what to do.
// Make it with NewMachine.
//
// Time limits are the caller's: it sends EventTimeout with the Epoch of the wait that ran out.
type Machine struct {
	State State
	// Epoch counts the waits.
	Epoch uint32
	// Attempt counts the containers made for this sandbox, from 1. There is a second one when the first
	// one's init crashed or ran out of time.
	Attempt uint8
	// Grant is the highest seen.
	Grant Grant
	// Init is how the claim ended, or its first attempt if there is a second; Last is how the last invocation did.
	Init, Last Outcome
	// Exit is how PID 1 ended, if it did so unasked.
	Exit Exit

	prePlaced  bool // the code is mounted when the container is made
	createOpen bool // Runtime.Create hasn't returned
	created    bool
	hello      bool
	claimed    bool
	claimOpen  bool // Init is not known yet
	awaiting   bool // the connection ended, the exit status is awaited
	again      bool // create once more after Destroying
}

// maxAttempts is how many containers one claim may use up.
const maxAttempts = 2

// NewMachine starts a life: the caller performs the Effects that it returns. prePlaced tells that the code of
// the only function that will claim the sandbox is there from the start.
func NewMachine(prePlaced bool) (Machine, Effects) {
	m := Machine{prePlaced: prePlaced}
	return m, m.create()
}

// Step takes one event. The result is the machine afterwards, what to do, and whether a request was refused.
func (m Machine) Step(e Event) (Machine, Effects, Refusal) {
	effects, refusal := m.step(e)
	return m, effects, refusal
}

// Claimed tells whether the sandbox belongs to a function.
func (m Machine) Claimed() bool { return m.claimed }

func (m *Machine) step(e Event) (Effects, Refusal) {
	switch e.Kind {
	case EventClaim:
		return m.claim(e.Grant)
	case EventInvoke:
		return m.invoke(e.Grant)
	case EventDestroy:
		return m.destroy(e.Grant)
	case EventKill:
		return m.end(OutcomeLost), Accepted
	case EventTimeout:
		if e.Epoch != m.Epoch {
			return 0, Accepted
		}
		return m.timeout(), Accepted
	default:
		if e.Attempt != m.Attempt {
			return 0, Accepted
		}
		return m.happened(e), Accepted
	}
}

// happened handles what the container does.
func (m *Machine) happened(e Event) Effects {
	switch e.Kind {
	case EventCreated, EventCreateFailed:
		return m.createReturned(e.Kind == EventCreated)
	case EventExit:
		return m.exit(e.Exit)
	case EventDisconnect:
		return m.disconnect()
	case EventDestroyed, EventDestroyFailed:
		return m.destroyReturned(e.Kind == EventDestroyed)
	}
	switch m.State {
	case StateCreating:
		if e.Kind == EventHello {
			m.hello = true
			return m.generic()
		}
	case StateLoading:
		return m.loading(e.Kind)
	case StateBusy:
		return m.busy(e.Kind)
	}
	return 0
}

func (m *Machine) enter(s State) {
	m.State = s
	m.Epoch++
	m.awaiting = false
}

func (m *Machine) create() Effects {
	m.enter(StateCreating)
	m.Attempt++
	m.createOpen, m.created, m.hello, m.again = true, false, false, false
	return EffectCreate
}

func (m *Machine) createReturned(ok bool) Effects {
	if !m.createOpen {
		return 0
	}
	m.createOpen = false
	switch {
	case m.State == StateDestroying && ok:
		return EffectDestroy
	case m.State == StateDestroying:
		return m.destroyReturned(true)
	case !ok:
		effects := m.end(OutcomeFailed) &^ EffectDestroy
		return effects | m.destroyReturned(true)
	}
	m.created = true
	return m.generic()
}

// generic is where Creating ends: PID 1 runs and the bootstrap has connected.
func (m *Machine) generic() Effects {
	if !m.created || !m.hello {
		return 0
	}
	m.enter(StateGeneric)
	if !m.claimed {
		return 0
	}
	return m.load()
}

func (m *Machine) claim(g Grant) (Effects, Refusal) {
	switch {
	case m.State == StateDestroying || m.State == StateGone:
		return 0, RefusedGone
	case g.Less(m.Grant):
		return 0, RefusedStale
	case m.claimed:
		return 0, RefusedBusy
	}
	m.Grant, m.claimed, m.claimOpen = g, true, true
	if m.State == StateCreating {
		return 0, Accepted
	}
	return m.load(), Accepted
}

func (m *Machine) load() Effects {
	m.enter(StateLoading)
	if m.prePlaced {
		return EffectLoad
	}
	return EffectPlace
}

func (m *Machine) loading(k EventKind) Effects {
	switch k {
	case EventPlaced:
		return EffectLoad
	case EventPlaceFailed, EventInitFailed:
		return m.end(OutcomeFailed)
	case EventReady:
		m.enter(StateIdle)
		m.Init, m.claimOpen = OutcomeOK, false
		return EffectClaimed
	}
	return 0
}

func (m *Machine) invoke(g Grant) (Effects, Refusal) {
	if g.Less(m.Grant) {
		return 0, RefusedStale
	}
	m.Grant = g
	switch m.State {
	case StateIdle:
		m.enter(StateBusy)
		m.Last = OutcomeNone
		return EffectSend, Accepted
	case StateBusy:
		return 0, RefusedBusy
	case StateDestroying, StateGone:
		return 0, RefusedGone
	}
	return 0, RefusedNotReady
}

func (m *Machine) busy(k EventKind) Effects {
	switch k {
	case EventAnswer:
		m.enter(StateIdle)
		m.Last = OutcomeOK
		return EffectOutcome
	case EventSendFailed:
		return m.end(OutcomeNotSent)
	}
	return 0
}

func (m *Machine) exit(x Exit) Effects {
	if m.State == StateDestroying || m.State == StateGone {
		return 0
	}
	m.Exit = x
	outcome := OutcomeExit
	if x.OOMKilled {
		outcome = OutcomeOutOfMemory
	}
	if m.State == StateLoading {
		return m.initBroke(outcome)
	}
	return m.end(outcome)
}

// initBroke tries an init that ended without a word once more, in a new container.
func (m *Machine) initBroke(o Outcome) Effects {
	if m.Attempt >= maxAttempts {
		return m.end(o)
	}
	m.Init, m.again = o, true
	m.enter(StateDestroying)
	return EffectInterrupt | EffectInitAgain | EffectDestroy
}

// disconnect waits for the exit status if somebody wants to know it.
func (m *Machine) disconnect() Effects {
	switch m.State {
	case StateCreating, StateLoading, StateBusy:
		m.Epoch++
		m.awaiting = true
		return EffectAwaitExit
	case StateGeneric, StateIdle:
		return m.end(OutcomeLost)
	}
	return 0
}

func (m *Machine) timeout() Effects {
	switch m.State {
	case StateCreating, StateLoading, StateBusy:
	default:
		return 0
	}
	if m.awaiting {
		m.Exit = Exit{Code: ExitUnknown}
		return m.end(OutcomeExit)
	}
	if m.State == StateLoading {
		return m.initBroke(OutcomeTimeout)
	}
	return m.end(OutcomeTimeout)
}

func (m *Machine) destroy(g Grant) (Effects, Refusal) {
	if g.Less(m.Grant) {
		return 0, RefusedStale
	}
	m.Grant = g
	return m.end(OutcomeLost), Accepted
}

// end begins Destroying, for good; whoever waits for a claim or an invocation learns the outcome o.
func (m *Machine) end(o Outcome) Effects {
	if m.State == StateGone {
		return 0
	}
	var effects Effects
	if m.claimOpen {
		m.Init, m.claimOpen = o, false
		effects |= EffectClaimed
	}
	if m.State == StateBusy {
		m.Last = o
		effects |= EffectOutcome
	}
	if m.State == StateDestroying {
		if m.again {
			m.again = false
			effects |= EffectReport
		}
		return effects
	}
	m.enter(StateDestroying)
	effects |= EffectInterrupt | EffectReport
	if !m.createOpen {
		effects |= EffectDestroy
	}
	return effects
}

func (m *Machine) destroyReturned(ok bool) Effects {
	switch {
	case m.State != StateDestroying || m.createOpen:
		return 0
	case !ok:
		return EffectRetryDestroy
	case m.again:
		return m.create()
	}
	m.enter(StateGone)
	return EffectGone
}
