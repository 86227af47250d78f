package api

import (
	"context"
	"slices"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	replaceWeights = "weights"
	// weightSlack lets sums such as 0.1 + 0.2 + 0.7 pass.
	weightSlack = 1e-9
)

type aliasService struct {
	mayflyv1.UnimplementedAliasServiceServer
	*core
}

// CreateAlias names a version.
func (s *aliasService) CreateAlias(ctx context.Context, r *mayflyv1.CreateAliasRequest) (*mayflyv1.CreateAliasResponse, error) {
	view := s.View()
	fn, ns, err := function(ctx, view, r.GetNamespace(), "function", r.GetFunction())
	if err != nil {
		return nil, err
	}
	if err := checkAliasName("name", r.GetName()); err != nil {
		return nil, err
	}
	if err := checkDescription(r.GetDescription()); err != nil {
		return nil, err
	}
	if err := checkRouting(view, fn, r.GetVersion(), r.GetWeights()); err != nil {
		return nil, err
	}
	if _, taken := view.Alias(ns.GetName(), r.GetFunction(), r.GetName()); taken {
		return nil, alreadyExists("function %q has an alias %q already: update it, or choose another name", r.GetFunction(), r.GetName())
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_CreateAlias{CreateAlias: &statev1.CreateAlias{Alias: &mayflyv1.Alias{
		Namespace: ns.GetName(), Function: r.GetFunction(), Name: r.GetName(), Arn: functionARN(view, ns, r.GetFunction()) + ":" + r.GetName(),
		Version: r.GetVersion(), Description: r.GetDescription(), Weights: r.GetWeights(),
	}}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.CreateAliasResponse{Alias: result.GetAlias()}, nil
}

// checkRouting checks where an alias leads: to versions that exist, with shares that make sense.
func checkRouting(view View, fn *mayflyv1.Function, version string, weights map[string]float64) error {
	if version == "" {
		return invalid("version is missing: give $LATEST or the number of a version")
	}
	if err := versionExists(view, fn, version); err != nil {
		return err
	}
	if version == latest && len(weights) > 0 {
		return invalid("weights can't be combined with version $LATEST: publish a version")
	}
	var sum float64
	for _, other := range sortedKeys(weights) {
		weight := weights[other]
		if other == latest || other == version {
			return invalid("weights: %q can't have a weight; the version of the alias gets what the others leave", other)
		}
		if err := versionExists(view, fn, other); err != nil {
			return err
		}
		// Written so that NaN is refused too.
		if !(weight >= 0 && weight <= 1) {
			return invalid("weights: %v for version %s is not between 0 and 1", weight, other)
		}
		sum += weight
	}
	if sum > 1+weightSlack {
		return invalid("weights add up to %v, which is more than 1", sum)
	}
	return nil
}

// GetAlias reads one alias.
func (s *aliasService) GetAlias(ctx context.Context, r *mayflyv1.GetAliasRequest) (*mayflyv1.GetAliasResponse, error) {
	_, alias, err := s.alias(ctx, s.View(), r.GetNamespace(), r.GetFunction(), r.GetName())
	if err != nil {
		return nil, err
	}
	return &mayflyv1.GetAliasResponse{Alias: alias}, nil
}

func (s *aliasService) alias(ctx context.Context, view View, requested, name, alias string) (*mayflyv1.Function, *mayflyv1.Alias, error) {
	fn, ns, err := function(ctx, view, requested, "function", name)
	if err != nil {
		return nil, nil, err
	}
	if err := checkAliasName("name", alias); err != nil {
		return nil, nil, err
	}
	found, ok := view.Alias(ns.GetName(), name, alias)
	if !ok {
		return nil, nil, aliasNotFound(fn, alias)
	}
	return fn, found, nil
}

// ListAliases reads a page of a function's aliases.
func (s *aliasService) ListAliases(ctx context.Context, r *mayflyv1.ListAliasesRequest) (*mayflyv1.ListAliasesResponse, error) {
	view := s.View()
	_, ns, err := function(ctx, view, r.GetNamespace(), "function", r.GetFunction())
	if err != nil {
		return nil, err
	}
	if r.GetVersion() != "" && r.GetVersion() != latest {
		if _, err := parseVersion("version", r.GetVersion()); err != nil {
			return nil, err
		}
	}
	p, err := parsePage(r.GetPageSize(), r.GetPageToken(), "aliases", ns.GetName(), r.GetFunction(), r.GetVersion())
	if err != nil {
		return nil, err
	}
	aliases, next := take(p, view.Aliases(ns.GetName(), r.GetFunction(), p.after), (*mayflyv1.Alias).GetName, func(a *mayflyv1.Alias) bool { return names(a, r.GetVersion()) })
	return &mayflyv1.ListAliasesResponse{Aliases: aliases, NextPageToken: next}, nil
}

// names tells whether an alias leads to a version; any does to "".
func names(a *mayflyv1.Alias, version string) bool {
	_, weighted := a.GetWeights()[version]
	return version == "" || a.GetVersion() == version || weighted
}

// UpdateAlias leads an alias elsewhere.
func (s *aliasService) UpdateAlias(ctx context.Context, r *mayflyv1.UpdateAliasRequest) (*mayflyv1.UpdateAliasResponse, error) {
	view := s.View()
	fn, old, err := s.alias(ctx, view, r.GetNamespace(), r.GetFunction(), r.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("alias "+old.GetName(), old.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if err := checkAliasReplace(r); err != nil {
		return nil, err
	}
	if err := checkDescription(r.GetDescription()); err != nil {
		return nil, err
	}
	version, weights := old.GetVersion(), old.GetWeights()
	if r.GetVersion() != "" {
		version = r.GetVersion()
	}
	if slices.Contains(r.GetReplace(), replaceWeights) {
		weights = r.GetWeights()
	}
	if err := checkRouting(view, fn, version, weights); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_UpdateAlias{UpdateAlias: &statev1.UpdateAlias{
		Namespace: fn.GetNamespace(), Function: fn.GetName(), Name: r.GetName(), Version: r.GetVersion(), Replace: r.GetReplace(),
		Description: r.GetDescription(), Weights: r.GetWeights(), ExpectedRevision: r.GetExpectedRevision(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateAliasResponse{Alias: result.GetAlias()}, nil
}

func checkAliasReplace(r *mayflyv1.UpdateAliasRequest) error {
	for _, name := range r.GetReplace() {
		if name != replaceDescription && name != replaceWeights {
			return invalid("replace: %.100q is not one of %s and %s", name, replaceDescription, replaceWeights)
		}
	}
	if r.GetDescription() != "" && !slices.Contains(r.GetReplace(), replaceDescription) {
		return invalid("description is given, but replace doesn't name it")
	}
	if len(r.GetWeights()) > 0 && !slices.Contains(r.GetReplace(), replaceWeights) {
		return invalid("weights is given, but replace doesn't name it")
	}
	return nil
}

// DeleteAlias deletes one alias.
func (s *aliasService) DeleteAlias(ctx context.Context, r *mayflyv1.DeleteAliasRequest) (*mayflyv1.DeleteAliasResponse, error) {
	fn, alias, err := s.alias(ctx, s.View(), r.GetNamespace(), r.GetFunction(), r.GetName())
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteAlias{DeleteAlias: &statev1.DeleteAlias{
		Namespace: fn.GetNamespace(), Function: fn.GetName(), Name: alias.GetName(), ExpectedRevision: r.GetExpectedRevision(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteAliasResponse{}, nil
}
