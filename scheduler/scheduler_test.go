package scheduler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const mib = 1 << 20

func at(seconds int) time.Time { return time.Unix(1_000_000+int64(seconds), 0) }

func node(id string, total, used int64) *Node {
	return &Node{
		ID: id, Name: id, Up: true, MemoryBytes: total * mib, UsedMemoryBytes: used * mib, MilliCPUs: 4000,
		MaxStarting: 8, Runtimes: []string{"python3.11"}, Code: map[string]int{}, Functions: map[Function]int{},
	}
}

func request(memory int64) *Request {
	return &Request{Function: Function{"default", "f"}, Runtime: "python3.11", CodeDigest: "d", MemoryBytes: memory * mib, MilliCPUs: 72}
}

func place(t *testing.T, r *Request, nodes ...*Node) (Plan, Refusals) {
	t.Helper()
	return Place(&Snapshot{Now: at(0), Nodes: nodes}, r)
}

func TestPlacePrefers(t *testing.T) {
	code := node("code", 1000, 100)
	code.Code["d"] = 1
	spread := node("spread", 1000, 0)
	spread.Functions[Function{"default", "f"}] = 3
	starting := node("starting", 1000, 0)
	starting.Starting = 4
	loaded := node("loaded", 1000, 0)
	loaded.UsedMilliCPUs = 3900
	for _, c := range []struct {
		name, want string
		nodes      []*Node
	}{
		{"free memory", "free", []*Node{node("full", 1000, 700), node("free", 1000, 100)}},
		{"code in its cache", "code", []*Node{node("other", 1000, 0), code}},
		{"fewer sandboxes of the function", "other", []*Node{spread, node("other", 1000, 100)}},
		{"fewer starts", "other", []*Node{starting, node("other", 1000, 100)}},
		{"free CPU", "other", []*Node{loaded, node("other", 1000, 100)}},
		{"the first of equals", "a", []*Node{node("a", 1000, 0), node("b", 1000, 0)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, refused := place(t, request(128), c.nodes...)
			if p.Node == nil || p.Node.ID != c.want {
				t.Fatalf("placed on %+v (%v), want %s", p.Node, refused, c.want)
			}
		})
	}
}

func TestPlaceSaysWhy(t *testing.T) {
	down := node("down", 1000, 0)
	down.Up = false
	bare := node("bare", 1000, 0)
	bare.Runtimes = nil
	paused := node("paused", 1000, 0)
	paused.NotBefore = at(1)
	starting := node("starting", 1000, 0)
	starting.Starting = 8
	busy := node("busy", 1000, 0)
	busy.UsedMilliCPUs = 3990
	weak := node("weak", 1000, 0)
	weak.MilliCPUs = 50
	alone := node("alone", 1000, 0)
	alone.NoEgress = true
	for _, c := range []struct {
		why     Why
		node    *Node
		passing bool
	}{
		{WhyDown, down, true},
		{WhyNoRuntime, bare, false},
		{WhyNoEgress, alone, false},
		{WhyTooSmall, node("small", 100, 0), false},
		{WhyPaused, paused, true},
		{WhyStarting, starting, true},
		{WhyMemory, node("full", 1000, 900), true},
		{WhyCPU, busy, true},
		{WhyTooSmall, weak, false},
	} {
		t.Run(c.why.String(), func(t *testing.T) {
			r := request(128)
			r.Egress = true
			p, refused := place(t, r, c.node)
			if p.Node != nil || refused[c.why] != 1 || len(refused) != 1 {
				t.Fatalf("plan %+v, refusals %v", p, refused)
			}
			if refused.Passing() != c.passing {
				t.Fatalf("Passing() = %v", refused.Passing())
			}
		})
	}
	if p, refused := place(t, request(128), alone); p.Node != alone {
		t.Fatalf("what needs no network is refused: %v", refused)
	}
	_, refused := place(t, request(128), down, bare, node("full", 1000, 900), node("full2", 1000, 900))
	if got, want := refused.String(), "1 node: not connected; 1 node: no image of the runtime; 2 nodes: memory in use"; got != want {
		t.Fatalf("String() = %q, want %q", got, want)
	}
	if _, none := place(t, request(128)); !none.Passing() || none.String() != "no node is connected" {
		t.Fatalf("without nodes: %v, passing %v", none, none.Passing())
	}
}

func TestPlaceMakesRoomOnlyWhenItMust(t *testing.T) {
	full := node("full", 1000, 1000)
	full.Idle = []Idle{{ID: "old", MemoryBytes: 128 * mib, LastUsed: at(-100)}, {ID: "new", MemoryBytes: 128 * mib, LastUsed: at(-1)}}
	if p, _ := place(t, request(128), full, node("free", 1000, 800)); p.Node.ID != "free" || p.Evict != nil {
		t.Fatalf("evicted without need: %+v", p)
	}
	p, _ := place(t, request(128), full)
	if p.Node != full || !slices.Equal(p.Evict, []string{"old"}) {
		t.Fatalf("plan %+v", p)
	}
	if p, refused := place(t, request(512), full); p.Node != nil || refused[WhyMemory] != 1 {
		t.Fatalf("plan %+v, refusals %v", p, refused)
	}
}

func TestPlaceMakesRoomForCPU(t *testing.T) {
	n := node("n", 1000, 200)
	n.UsedMilliCPUs = 3950
	n.Idle = []Idle{
		{ID: "small", MemoryBytes: 50 * mib, MilliCPUs: 10, LastUsed: at(-100)},
		{ID: "large", MemoryBytes: 50 * mib, MilliCPUs: 100, LastUsed: at(-1)},
	}
	if p, refused := place(t, request(128), n); p.Node == nil || !slices.Equal(p.Evict, []string{"large"}) {
		t.Fatalf("plan %+v, refusals %v", p, refused)
	}
}

func TestMakeRoomValue(t *testing.T) {
	idle := []Idle{
		{ID: "dear", MemoryBytes: 100, LastUsed: at(-60), Init: 3 * time.Second},
		{ID: "cheap", MemoryBytes: 100, LastUsed: at(-50)},
		{ID: "large", MemoryBytes: 300, LastUsed: at(-10)},
	}
	for _, c := range []struct {
		need int64
		want []string
	}{
		{0, nil},
		{100, []string{"cheap"}},
		{101, []string{"large"}}, // once the large one goes, the cheap one may stay
		{400, []string{"cheap", "large"}},
		{500, []string{"cheap", "large", "dear"}},
	} {
		got, ok := MakeRoom(idle, c.need, 0)
		if !ok || !slices.Equal(got, c.want) {
			t.Errorf("MakeRoom(%d) = %v, %v, want %v", c.need, got, ok, c.want)
		}
	}
	if got, ok := MakeRoom(idle, 501, 0); ok || got != nil {
		t.Errorf("MakeRoom(501) = %v, %v", got, ok)
	}
	if idle[0].ID != "dear" {
		t.Error("MakeRoom changed its input")
	}
}

func TestExpired(t *testing.T) {
	idle := []Idle{{ID: "a", LastUsed: at(-300)}, {ID: "b", LastUsed: at(-299)}}
	if got := Expired(idle, at(0), 5*time.Minute); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("Expired = %v", got)
	}
}

func TestStarts(t *testing.T) {
	for _, c := range []struct {
		d    Demand
		want int
	}{
		{Demand{Waiting: 3, Limit: -1}, 3},
		{Demand{Waiting: 3, Starting: 1, Idle: 1, Limit: -1}, 1},
		{Demand{Waiting: 1, Starting: 5, Limit: -1}, 0},
		{Demand{Waiting: 5, Leased: 8, Limit: 10}, 2},
		{Demand{Waiting: 5, Leased: 12, Limit: 10}, 0},
		{Demand{Waiting: 5, Limit: 0}, 0},
	} {
		if got := Starts(c.d); got != c.want {
			t.Errorf("Starts(%+v) = %d, want %d", c.d, got, c.want)
		}
	}
}

func TestQuotaFree(t *testing.T) {
	if got := (Quota{Limit: 1000, Reserved: 300, UnreservedLeased: 699}).Free(); got != 1 {
		t.Errorf("Free = %d, want 1", got)
	}
	if got := (Quota{Limit: 100, Reserved: 300}).Free(); got != 0 {
		t.Errorf("Free = %d, want 0", got)
	}
}

func TestPoolTargets(t *testing.T) {
	n := node("n", 100, 50)
	n.Runtimes = []string{"python3.11", "nodejs18"}
	if got := fmt.Sprint(PoolTargets(n, PoolPolicy{})); got != "[{nodejs18 0} {python3.11 0}]" {
		t.Errorf("zero policy: %v", got)
	}
	if got := fmt.Sprint(PoolTargets(n, PoolPolicy{PerRuntime: 4, MemoryBytes: 10 * mib})); got != "[{nodejs18 3} {python3.11 2}]" {
		t.Errorf("limited by memory: %v", got)
	}
}

func drawNode(t *rapid.T, i int) *Node {
	total := rapid.Int64Range(64, 2048).Draw(t, "total")
	n := node(fmt.Sprintf("n%d", i), total, rapid.Int64Range(0, total).Draw(t, "used"))
	n.Up = rapid.IntRange(0, 9).Draw(t, "up") > 0
	n.Starting = rapid.IntRange(0, 8).Draw(t, "starting")
	if rapid.Bool().Draw(t, "node18") {
		n.Runtimes = []string{"nodejs18"}
	}
	left, busy := n.UsedMemoryBytes, rapid.Int64Range(0, n.MilliCPUs).Draw(t, "cpus")
	n.UsedMilliCPUs = busy
	for j := range rapid.IntRange(0, 6).Draw(t, "idle") {
		m := rapid.Int64Range(0, left).Draw(t, "m")
		c := rapid.Int64Range(0, busy).Draw(t, "c")
		left, busy = left-m, busy-c
		n.Idle = append(n.Idle, Idle{ID: fmt.Sprintf("n%d-%d", i, j), MemoryBytes: m, MilliCPUs: c, LastUsed: at(-rapid.IntRange(0, 600).Draw(t, "age"))})
	}
	return n
}

// Safety: a plan keeps every filter and never exceeds a node's memory. Liveness: if any node fits, one is found.
func TestPlaceProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &Snapshot{Now: at(0)}
		for i := range rapid.IntRange(0, 12).Draw(t, "nodes") {
			s.Nodes = append(s.Nodes, drawNode(t, i))
		}
		r := request(rapid.Int64Range(1, 2048).Draw(t, "memory"))
		p, refused := Place(s, r)
		if p.Node == nil {
			checkRefused(t, s, r, refused)
			return
		}
		checkPlan(t, p, r)
	})
}

func checkRefused(t *rapid.T, s *Snapshot, r *Request, refused Refusals) {
	sum := 0
	for _, n := range refused {
		sum += n
	}
	if sum != len(s.Nodes) {
		t.Fatalf("%d nodes, refusals %v", len(s.Nodes), refused)
	}
	for _, n := range s.Nodes {
		if _, ok := fits(s, n, r); ok {
			t.Fatalf("node %s fits, but was refused: %v", n.ID, refused)
		}
	}
}

func checkPlan(t *rapid.T, p Plan, r *Request) {
	used, cpus := p.Node.UsedMemoryBytes+r.MemoryBytes, p.Node.UsedMilliCPUs+r.MilliCPUs
	for _, id := range p.Evict {
		i := slices.IndexFunc(p.Node.Idle, func(i Idle) bool { return i.ID == id })
		if i < 0 {
			t.Fatalf("evicts %s, which isn't idle on node %s", id, p.Node.ID)
		}
		used -= p.Node.Idle[i].MemoryBytes
		cpus -= p.Node.Idle[i].MilliCPUs
	}
	if used > p.Node.MemoryBytes || cpus > p.Node.MilliCPUs {
		t.Fatalf("%d of %d bytes, %d of %d mCPU used after the plan", used, p.Node.MemoryBytes, cpus, p.Node.MilliCPUs)
	}
	if !p.Node.Up || p.Node.Starting >= p.Node.MaxStarting || !slices.Contains(p.Node.Runtimes, r.Runtime) {
		t.Fatalf("plan breaks a filter: %+v", p.Node)
	}
}

func TestMakeRoomProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawNode(t, 0)
		memory := rapid.Int64Range(0, 2048*mib).Draw(t, "memory")
		cpus := rapid.Int64Range(0, 4000).Draw(t, "mCPU")
		chosen, ok := MakeRoom(n.Idle, memory, cpus)
		var all, got room
		for i := range n.Idle {
			all.add(&n.Idle[i])
			if slices.Contains(chosen, n.Idle[i].ID) {
				got.add(&n.Idle[i])
			}
		}
		enough := func(r room) bool { return r.memory >= memory && r.cpus >= cpus }
		if ok != enough(all) || (ok && !enough(got)) {
			t.Fatalf("need %d, %d of %+v, got %+v, ok %v", memory, cpus, all, got, ok)
		}
		for _, i := range n.Idle {
			if slices.Contains(chosen, i.ID) && enough(room{got.memory - i.MemoryBytes, got.cpus - i.MilliCPUs}) {
				t.Fatalf("%s is removed needlessly: need %d, %d of %+v", i.ID, memory, cpus, got)
			}
		}
	})
}

func TestStartsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(0, 2000)
		d := Demand{
			Waiting: count.Draw(t, "waiting"), Starting: count.Draw(t, "starting"), Idle: count.Draw(t, "idle"),
			Leased: count.Draw(t, "leased"), Limit: count.Draw(t, "limit") - 1,
		}
		n := Starts(d)
		if n < 0 || n > d.Waiting || (d.Limit >= 0 && n > 0 && d.Leased+n > d.Limit) {
			t.Fatalf("Starts(%+v) = %d", d, n)
		}
	})
}

// The scheduler alone, as a fleet uses it: 1,000 nodes, each placement is accounted for, full nodes are emptied.
func BenchmarkPlace1000Nodes(b *testing.B) {
	s := &Snapshot{Now: at(0)}
	for i := range 1000 {
		s.Nodes = append(s.Nodes, node(fmt.Sprintf("n%d", i), 16384, 0))
		s.Nodes[i].MaxStarting, s.Nodes[i].MilliCPUs = 1<<30, 64000
	}
	functions := make([]*Request, 500)
	for i := range functions {
		functions[i] = request(128)
		functions[i].Function.Name = fmt.Sprintf("function-%d", i)
		functions[i].CodeDigest = fmt.Sprintf("sha256:%064d", i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r := functions[i%len(functions)]
		p, refused := Place(s, r)
		if p.Node == nil {
			b.Fatal(refused)
		}
		p.Node.UsedMemoryBytes = (p.Node.UsedMemoryBytes + r.MemoryBytes) % (p.Node.MemoryBytes - r.MemoryBytes)
		p.Node.Code[r.CodeDigest]++
		p.Node.Functions[r.Function]++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "placements/s")
}

func BenchmarkStarts(b *testing.B) {
	b.ReportAllocs()
	sum := 0
	for i := 0; b.Loop(); i++ {
		sum += Starts(Demand{Waiting: i & 7, Starting: i & 3, Idle: i & 1, Limit: -1})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}
