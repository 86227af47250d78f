package api_test

import (
	"math"
	"testing"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestVersions(t *testing.T) {
	b := newBench(t)
	fn := b.admin.create(t, "f")
	ctx := testContext(t)
	for want := int64(1); want <= 12; want++ {
		if got := b.admin.publish(t, "f").GetNumber(); got != want {
			t.Fatalf("number %d, want %d", got, want)
		}
	}
	same, err := b.admin.version.PublishVersion(ctx, &mayflyv1.PublishVersionRequest{Function: "f"})
	if err != nil || same.GetVersion().GetNumber() != 12 {
		t.Fatalf("unchanged, but %v, %v", same, err)
	}
	got, err := b.admin.version.GetVersion(ctx, &mayflyv1.GetVersionRequest{Function: "f", Number: 12})
	if err != nil || got.GetVersion().GetNumber() != 12 {
		t.Fatalf("%v, %v", got, err)
	}
	r := &mayflyv1.ListVersionsRequest{Function: "f", PageSize: 5}
	var numbers []int64
	for {
		page, err := b.admin.version.ListVersions(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.GetVersions() {
			numbers = append(numbers, v.GetNumber())
		}
		if r.PageToken = page.GetNextPageToken(); r.PageToken == "" {
			break
		}
	}
	// By number, not by text: 9 comes before 10.
	for i, n := range numbers {
		if n != int64(i+1) {
			t.Fatalf("numbers %v", numbers)
		}
	}
	if len(numbers) != 12 {
		t.Fatalf("numbers %v", numbers)
	}
	if _, err := b.admin.version.DeleteVersion(ctx, &mayflyv1.DeleteVersionRequest{Function: "f", Number: 3}); err != nil {
		t.Fatal(err)
	}
	_, err = b.admin.version.GetVersion(ctx, &mayflyv1.GetVersionRequest{Function: "f", Number: 3})
	wantReason(t, "deleted", err, noVersion, "3")
	_, err = b.admin.version.GetVersion(ctx, &mayflyv1.GetVersionRequest{Function: "f"})
	wantReason(t, "no number", err, invalidArgument, "number")
	_, err = b.admin.version.DeleteVersion(ctx, &mayflyv1.DeleteVersionRequest{Function: "f", Number: 99})
	wantReason(t, "unknown", err, noVersion, "99")
	_, err = b.admin.version.GetVersion(ctx, &mayflyv1.GetVersionRequest{Function: "g", Number: 1})
	wantReason(t, "unknown function", err, noFunction, "g")
	_, err = b.admin.version.PublishVersion(ctx, &mayflyv1.PublishVersionRequest{Function: "f", ExpectedRevision: fn.GetMeta().GetRevision()})
	wantReason(t, "stale", err, revision)
	_, err = b.admin.version.PublishVersion(ctx, &mayflyv1.PublishVersionRequest{Function: "f", CodeDigest: "md5:x"})
	wantReason(t, "digest", err, invalidArgument, "code_digest", "md5:x")
	_, err = b.admin.version.ListVersions(ctx, &mayflyv1.ListVersionsRequest{Function: "f", PageToken: "x"})
	wantReason(t, "token", err, mayflyv1.ErrorReason_ERROR_REASON_INVALID_PAGE_TOKEN)
}

func TestAliases(t *testing.T) {
	b := newBench(t)
	b.admin.create(t, "f")
	b.admin.publish(t, "f")
	b.admin.publish(t, "f")
	ctx := testContext(t)
	create := func(r *mayflyv1.CreateAliasRequest) (*mayflyv1.Alias, error) {
		r.Function = "f"
		response, err := b.admin.alias.CreateAlias(ctx, r)
		return response.GetAlias(), err
	}
	live, err := create(&mayflyv1.CreateAliasRequest{Name: "live", Version: "1", Weights: map[string]float64{"2": 0.1}})
	if err != nil || live.GetArn() != "arn:aws:lambda:us-east-1:000000000000:function:f:live" {
		t.Fatalf("%v, %v", live, err)
	}
	if _, err := create(&mayflyv1.CreateAliasRequest{Name: "dev", Version: "$LATEST"}); err != nil {
		t.Fatal(err)
	}
	before := b.proposals()
	for name, test := range map[string]struct {
		r      *mayflyv1.CreateAliasRequest
		reason mayflyv1.ErrorReason
		words  []string
	}{
		"taken":            {&mayflyv1.CreateAliasRequest{Name: "live", Version: "1"}, exists, []string{"live"}},
		"digits":           {&mayflyv1.CreateAliasRequest{Name: "123", Version: "1"}, badName, []string{"123"}},
		"$LATEST as name":  {&mayflyv1.CreateAliasRequest{Name: "$LATEST", Version: "1"}, badName, nil},
		"no name":          {&mayflyv1.CreateAliasRequest{Version: "1"}, badName, []string{"name"}},
		"no version":       {&mayflyv1.CreateAliasRequest{Name: "a"}, invalidArgument, []string{"version"}},
		"unknown version":  {&mayflyv1.CreateAliasRequest{Name: "a", Version: "3"}, noVersion, []string{"3"}},
		"alias as version": {&mayflyv1.CreateAliasRequest{Name: "a", Version: "live"}, invalidArgument, []string{"live"}},
		"weights, LATEST":  {&mayflyv1.CreateAliasRequest{Name: "a", Version: "$LATEST", Weights: map[string]float64{"1": .5}}, invalidArgument, []string{"$LATEST"}},
		"weight of LATEST": {&mayflyv1.CreateAliasRequest{Name: "a", Version: "1", Weights: map[string]float64{"$LATEST": .5}}, invalidArgument, []string{"$LATEST"}},
		"own weight":       {&mayflyv1.CreateAliasRequest{Name: "a", Version: "1", Weights: map[string]float64{"1": .5}}, invalidArgument, []string{"1"}},
		"unknown weight":   {&mayflyv1.CreateAliasRequest{Name: "a", Version: "1", Weights: map[string]float64{"9": .5}}, noVersion, []string{"9"}},
		"negative weight":  {&mayflyv1.CreateAliasRequest{Name: "a", Version: "1", Weights: map[string]float64{"2": -.5}}, invalidArgument, []string{"-0.5"}},
		"weight over 1":    {&mayflyv1.CreateAliasRequest{Name: "a", Version: "1", Weights: map[string]float64{"2": 1.5}}, invalidArgument, []string{"1.5"}},
		"NaN":              {&mayflyv1.CreateAliasRequest{Name: "a", Version: "1", Weights: map[string]float64{"2": math.NaN()}}, invalidArgument, []string{"NaN"}},
	} {
		_, err := create(test.r)
		wantReason(t, name, err, test.reason, test.words...)
	}
	update := func(r *mayflyv1.UpdateAliasRequest) error {
		r.Function, r.Name = "f", "live"
		_, err := b.admin.alias.UpdateAlias(ctx, r)
		return err
	}
	wantReason(t, "stale", update(&mayflyv1.UpdateAliasRequest{Version: "2", ExpectedRevision: live.GetMeta().GetRevision() - 1}), revision)
	wantReason(t, "weights unnamed", update(&mayflyv1.UpdateAliasRequest{Weights: map[string]float64{"2": 1}}), invalidArgument, "weights")
	wantReason(t, "description unnamed", update(&mayflyv1.UpdateAliasRequest{Description: "x"}), invalidArgument, "description")
	wantReason(t, "unknown replace", update(&mayflyv1.UpdateAliasRequest{Replace: []string{"version"}}), invalidArgument, "version")
	// The weights that stay don't fit the new version.
	wantReason(t, "weight of itself", update(&mayflyv1.UpdateAliasRequest{Version: "2"}), invalidArgument, "2")
	if b.proposals() != before {
		t.Error("a refused alias was proposed")
	}
	if err := update(&mayflyv1.UpdateAliasRequest{Version: "2", Replace: []string{"weights", "description"}, Description: "new"}); err != nil {
		t.Error(err)
	}
	got, err := b.admin.alias.GetAlias(ctx, &mayflyv1.GetAliasRequest{Function: "f", Name: "live"})
	if err != nil || got.GetAlias().GetVersion() != "2" || len(got.GetAlias().GetWeights()) != 0 || got.GetAlias().GetDescription() != "new" {
		t.Errorf("%v, %v", got, err)
	}
	for version, want := range map[string]int{"": 2, "2": 1, "1": 0, "$LATEST": 1} {
		list, err := b.admin.alias.ListAliases(ctx, &mayflyv1.ListAliasesRequest{Function: "f", Version: version})
		if err != nil || len(list.GetAliases()) != want {
			t.Errorf("aliases of %q: %v, %v", version, list, err)
		}
	}
	_, err = b.admin.alias.ListAliases(ctx, &mayflyv1.ListAliasesRequest{Function: "f", Version: "x"})
	wantReason(t, "filter", err, invalidArgument, "version")
	if _, err := b.admin.alias.DeleteAlias(ctx, &mayflyv1.DeleteAliasRequest{Function: "f", Name: "live"}); err != nil {
		t.Error(err)
	}
	_, err = b.admin.alias.DeleteAlias(ctx, &mayflyv1.DeleteAliasRequest{Function: "f", Name: "live"})
	wantReason(t, "again", err, noAlias, "live")
}

func TestAliasWeightsTogether(t *testing.T) {
	b := newBench(t)
	b.admin.create(t, "f")
	for range 3 {
		b.admin.publish(t, "f")
	}
	_, err := b.admin.alias.CreateAlias(testContext(t), &mayflyv1.CreateAliasRequest{Function: "f", Name: "a", Version: "1", Weights: map[string]float64{"2": .6, "3": .6}})
	wantReason(t, "sum", err, invalidArgument, "1.2")
	_, err = b.admin.alias.CreateAlias(testContext(t), &mayflyv1.CreateAliasRequest{Function: "f", Name: "a", Version: "1", Weights: map[string]float64{"2": .5, "3": .5}})
	if err != nil {
		t.Error(err)
	}
}
