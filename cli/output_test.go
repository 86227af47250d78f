package cli

import (
	"testing"
	"time"
)

func TestAgeOf(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for age, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59 * time.Second: "59s", 90 * time.Second: "1m", 23*time.Hour + 59*time.Minute: "23h", 49 * time.Hour: "2d",
	} {
		if got := ageOf(now.Add(-age), now); got != want {
			t.Errorf("%s: got %s, want %s", age, got, want)
		}
	}
}
