package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// figures is what a sample comes to. Times are in microseconds.
type figures struct {
	p50, p99, perSecond float64
}

// add joins the rounds of a point.
func (s *sample) add(o sample) {
	s.Nanos = append(s.Nanos, o.Nanos...)
	s.Seconds += o.Seconds
}

func (s *sample) figures() figures {
	sorted := slices.Sorted(slices.Values(s.Nanos))
	return figures{
		p50: percentile(sorted, 50) / 1e3, p99: percentile(sorted, 99) / 1e3, perSecond: float64(len(sorted)) / s.Seconds,
	}
}

// percentile is the smallest value that p per cent of sorted don't exceed; 0 for none.
func percentile(sorted []int64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return float64(sorted[max(rank-1, 0)])
}

// row is a line of the result. Must, Aim and OK refer to what Unit says; p99_ratio has the same Must where it has one.
type row struct {
	Name  string  `json:"name"`
	P50   float64 `json:"p50_us"`
	P99   float64 `json:"p99_us"`
	PerS  float64 `json:"per_s"`
	Ratio float64 `json:"ratio"`
	Must  float64 `json:"must"`
	Aim   float64 `json:"aim"`
	OK    bool    `json:"ok"`

	// Unit is "p50/bare", "per_s/bare" (more is better) or "p50_us".
	Unit     string  `json:"unit"`
	P99Ratio float64 `json:"p99_ratio"`
	BareP50  float64 `json:"bare_p50_us"`
	BareP99  float64 `json:"bare_p99_us"`
	BarePerS float64 `json:"bare_per_s"`
	// Busy is the share of all CPUs that was in use while the row was measured, 0 to 1.
	Busy float64 `json:"cpu_busy"`
	Load string  `json:"load"`
}

const (
	unitP50     = "p50/bare"
	unitPerS    = "per_s/bare"
	unitMicros  = "p50_us"
	coldRunc    = 110_000
	coldOwnShim = 50_000
)

// budget is what a row is held against.
type budget struct {
	unit      string
	must, aim float64
	// p99 holds the ratio of the 99th percentiles against must, too.
	p99 bool
}

func budgetOf(name string, ownShim bool) budget {
	switch name {
	case "warm_c1":
		return budget{unit: unitP50, must: 4, aim: 2.5, p99: true}
	case "warm_c32", "warm_c32_inproc":
		return budget{unit: unitPerS, must: 0.25, aim: 0.5}
	case "warm_c1_inproc":
		return budget{unit: unitP50, must: 3, aim: 1.8}
	}
	if ownShim {
		return budget{unit: unitMicros, must: coldOwnShim, aim: 35_000}
	}
	return budget{unit: unitMicros, must: coldRunc, aim: 35_000}
}

// judge makes the row of a point.
func judge(name string, b budget, mayfly, bare figures) row {
	r := row{
		Name: name, P50: mayfly.p50, P99: mayfly.p99, PerS: mayfly.perSecond, Must: b.must, Aim: b.aim, Unit: b.unit,
		BareP50: bare.p50, BareP99: bare.p99, BarePerS: bare.perSecond,
		Ratio: mayfly.p50 / bare.p50, P99Ratio: mayfly.p99 / bare.p99,
	}
	switch b.unit {
	case unitPerS:
		r.Ratio = mayfly.perSecond / bare.perSecond
		r.OK = r.Ratio >= b.must
	case unitMicros:
		r.OK = r.P50 <= b.must
	default:
		r.OK = r.Ratio <= b.must && (!b.p99 || r.P99Ratio <= b.must)
	}
	return r
}

func printTable(w io.Writer, rows []row, load string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "row\tp50 µs\tp99 µs\t/s\tbare p50\tbare p99\tbare /s\tratio\tp99 ratio\tmust\taim\tof\tok\tcpu\tload\t")
	for _, r := range rows {
		ok := "no"
		if r.OK {
			ok = "yes"
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t%g\t%g\t%s\t%s\t%.0f%%\t%s\t\n", r.Name, r.P50, r.P99, r.PerS,
			r.BareP50, r.BareP99, r.BarePerS, r.Ratio, r.P99Ratio, r.Must, r.Aim, r.Unit, ok, r.Busy*100, r.Load)
	}
	_ = t.Flush()
	fmt.Fprintf(w, "load after: %s\n", load)
}

// loadAverage is the machine's load over 1, 5 and 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}

// cpuTimes is the ticks that all CPUs were busy and existed, since boot.
type cpuTimes struct{ busy, total float64 }

func readCPU() cpuTimes {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTimes{}
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return parseCPU(line)
}

// parseCPU reads the line "cpu user nice system idle iowait irq softirq steal …". Guest times are in user's already.
func parseCPU(line string) cpuTimes {
	var t cpuTimes
	f := strings.Fields(line)
	for i := 1; i < len(f) && i <= 8; i++ {
		n, _ := strconv.ParseFloat(f[i], 64)
		t.total += n
		if i != 4 && i != 5 {
			t.busy += n
		}
	}
	return t
}

// since is the share of the time after before that CPUs were busy.
func (t cpuTimes) since(before cpuTimes) float64 {
	if t.total <= before.total {
		return 0
	}
	return (t.busy - before.busy) / (t.total - before.total)
}
