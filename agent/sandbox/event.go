package sandbox

// State is where a sandbox is in its life.
type State uint8

// States, in the usual order. A sandbox whose init crashed or ran out of time goes from Destroying back to Creating, once.
const (
	StateCreating   State = iota + 1 // the runtime makes it; ends when PID 1 runs and the bootstrap said Hello
	StateGeneric                     // waits to be claimed for a function
	StateLoading                     // the function's code is placed and initialised
	StateIdle                        // waits for an invocation
	StateBusy                        // runs one
	StateDestroying                  // is being removed
	StateGone                        // nothing of it is left
)

var stateNames = [...]string{"none", "creating", "generic", "loading", "idle", "busy", "destroying", "gone"}

// String is the state's name, as in metrics.
func (s State) String() string { return stateNames[s] }

// Grant orders the routers that may use a sandbox.
type Grant struct{ Term, Sequence uint64 }

// Less tells whether g was given before h.
func (g Grant) Less(h Grant) bool {
	return g.Term < h.Term || (g.Term == h.Term && g.Sequence < h.Sequence)
}

// EventKind is what happened to a sandbox.
type EventKind uint8

// Events. Those of a container carry the attempt that it was made in; one of an earlier attempt is ignored.
const (
	EventCreated       EventKind = iota + 1 // Runtime.Create returned
	EventCreateFailed                       // Runtime.Create failed, nothing is left
	EventHello                              // the bootstrap connected
	EventClaim                              // a function wants the sandbox; carries a grant
	EventPlaced                             // Runtime.PlaceCode returned
	EventPlaceFailed                        // Runtime.PlaceCode failed
	EventReady                              // the function's init ended well
	EventInitFailed                         // the function's init failed
	EventInvoke                             // an invocation wants the sandbox; carries a grant
	EventSendFailed                         // the invocation didn't reach the bootstrap
	EventAnswer                             // the bootstrap answered the invocation
	EventDisconnect                         // the bootstrap's connection ended
	EventExit                               // PID 1 ended; carries how
	EventTimeout                            // the wait of an epoch took too long
	EventDestroy                            // the control plane wants it gone; carries a grant
	EventKill                               // the agent wants it gone
	EventDestroyed                          // Runtime.Destroy returned
	EventDestroyFailed                      // Runtime.Destroy failed; something may be left
)

// Event is one thing that happened.
type Event struct {
	Kind    EventKind
	Attempt uint8
	Epoch   uint32 // of EventTimeout
	Grant   Grant  // of EventClaim, EventInvoke, EventDestroy
	Exit    Exit   // of EventExit
}

// Effects is a set of what the caller of Step is to do, from the lowest bit to the highest.
type Effects uint16

// Effects, each with the events that answer it.
const (
	EffectCreate       Effects = 1 << iota // Runtime.Create: Created or CreateFailed; Hello, Timeout
	EffectPlace                            // Runtime.PlaceCode: Placed or PlaceFailed
	EffectLoad                             // send Load: Ready, InitFailed, Disconnect or Timeout
	EffectSend                             // send the event: Answer, SendFailed, Disconnect or Timeout
	EffectAwaitExit                        // wait shortly for the exit status: Exit or Timeout
	EffectInterrupt                        // stop Create and close the connection
	EffectInitAgain                        // the init crashed or took too long, Machine.Init says which; it is tried once more
	EffectClaimed                          // the claim has ended: Machine.Init
	EffectOutcome                          // the invocation has ended: Machine.Last
	EffectReport                           // tell the control plane that the sandbox serves no more
	EffectDestroy                          // Runtime.Destroy: Destroyed or DestroyFailed
	EffectRetryDestroy                     // the same after a pause
	EffectGone                             // release everything
)

// Has tells whether all effects of f are in e.
func (e Effects) Has(f Effects) bool { return e&f == f }

// Refusal is why a request was not taken; the sandbox is unchanged but for its grant.
type Refusal uint8

// Refusals.
const (
	Accepted        Refusal = iota
	RefusedStale            // the grant is older than the last one seen
	RefusedBusy             // another invocation runs, or another function has it
	RefusedNotReady         // not loaded yet
	RefusedGone             // being removed
)

var refusalTexts = [...]string{"accepted", "its grant is older than the sandbox's last", "it is in use", "it is not loaded", "it is being removed"}

// String is the refusal's reason, for messages.
func (r Refusal) String() string { return refusalTexts[r] }

// Outcome is how a claim or an invocation ended.
type Outcome uint8

// Outcomes.
const (
	OutcomeNone        Outcome = iota
	OutcomeOK                  // ready, or answered
	OutcomeNotSent             // the event never reached the bootstrap
	OutcomeFailed              // the function's init failed, or the runtime couldn't make the sandbox
	OutcomeTimeout             // time ran out
	OutcomeExit                // PID 1 ended: Machine.Exit
	OutcomeOutOfMemory         // the kernel killed it for its memory limit
	OutcomeLost                // destroyed meanwhile
)
