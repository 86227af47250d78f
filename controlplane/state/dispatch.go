package state

import (
	"errors"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// dispatch gives a command to the file of its kind. A refusal comes back as a *fault.Error; any other error stops the node.
func (t *tx) dispatch(c *statev1.Command) (*statev1.Result, error) {
	switch op := c.GetOperation().(type) {
	case *statev1.Command_CreateNamespace:
		return answerNamespace(t.createNamespace(op.CreateNamespace))
	case *statev1.Command_UpdateNamespace:
		return answerNamespace(t.updateNamespace(op.UpdateNamespace))
	case *statev1.Command_DeleteNamespace:
		return answerNamespace(t.deleteNamespace(op.DeleteNamespace))
	case *statev1.Command_CreateFunction:
		return answerFunction(t.createFunction(op.CreateFunction))
	case *statev1.Command_UpdateFunctionCode:
		return answerFunction(t.updateFunctionCode(op.UpdateFunctionCode))
	case *statev1.Command_UpdateFunctionConfiguration:
		return answerFunction(t.updateFunctionConfiguration(op.UpdateFunctionConfiguration))
	case *statev1.Command_DeleteFunction:
		return answerFunction(t.deleteFunction(op.DeleteFunction))
	case *statev1.Command_SetFunctionState:
		return answerFunction(t.setFunctionState(op.SetFunctionState))
	case *statev1.Command_SetFunctionConcurrency:
		return answerFunction(t.setFunctionConcurrency(op.SetFunctionConcurrency))
	case *statev1.Command_SetFunctionUrl:
		return answerFunction(t.setFunctionURL(op.SetFunctionUrl))
	case *statev1.Command_PublishVersion:
		return answerVersion(t.publishVersion(op.PublishVersion))
	case *statev1.Command_DeleteVersion:
		return answerVersion(t.deleteVersion(op.DeleteVersion))
	}
	return t.dispatchRest(c)
}

func (t *tx) dispatchRest(c *statev1.Command) (*statev1.Result, error) {
	switch op := c.GetOperation().(type) {
	case *statev1.Command_CreateAlias:
		return answerAlias(t.createAlias(op.CreateAlias))
	case *statev1.Command_UpdateAlias:
		return answerAlias(t.updateAlias(op.UpdateAlias))
	case *statev1.Command_DeleteAlias:
		return answerAlias(t.deleteAlias(op.DeleteAlias))
	case *statev1.Command_CreateAccessKey:
		return answerAccessKey(t.createAccessKey(op.CreateAccessKey))
	case *statev1.Command_UpdateAccessKey:
		return answerAccessKey(t.updateAccessKey(op.UpdateAccessKey))
	case *statev1.Command_DeleteAccessKey:
		return answerAccessKey(t.deleteAccessKey(op.DeleteAccessKey))
	case *statev1.Command_CreateSecret:
		return answerSecret(t.createSecret(op.CreateSecret))
	case *statev1.Command_UpdateSecret:
		return answerSecret(t.updateSecret(op.UpdateSecret))
	case *statev1.Command_DeleteSecret:
		return answerSecret(t.deleteSecret(op.DeleteSecret))
	case *statev1.Command_PutNode:
		return answerNode(t.putNode(op.PutNode))
	case *statev1.Command_DeleteNode:
		return answerNode(t.deleteNode(op.DeleteNode))
	case *statev1.Command_UpdateSettings:
		return answerSettings(t.updateSettings(op.UpdateSettings))
	case *statev1.Command_InitCluster:
		return answerSettings(t.initCluster(op.InitCluster))
	case *statev1.Command_SetRootKey:
		return &statev1.Result{}, t.setRootKey(op.SetRootKey)
	case *statev1.Command_ResealAccessKey:
		return &statev1.Result{}, t.resealAccessKey(op.ResealAccessKey)
	case *statev1.Command_ResealSecret:
		return &statev1.Result{}, t.resealSecret(op.ResealSecret)
	}
	return nil, unknownCommand(c)
}

// unknownCommand refuses an empty command. One that a newer Mayfly wrote stops this node: the others apply it.
func unknownCommand(c *statev1.Command) error {
	if len(c.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("its command is of a newer version of mayfly than this one: run that version")
	}
	return fault.New(codes.InvalidArgument, mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT,
		"the command names no operation: set one")
}

func answerNamespace(n *mayflyv1.Namespace, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Namespace{Namespace: n}}, nil
}

func answerFunction(f *mayflyv1.Function, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Function{Function: f}}, nil
}

func answerVersion(v *mayflyv1.Version, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Version{Version: v}}, nil
}

func answerAlias(a *mayflyv1.Alias, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Alias{Alias: a}}, nil
}

func answerAccessKey(k *mayflyv1.AccessKey, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_AccessKey{AccessKey: k}}, nil
}

func answerSecret(s *mayflyv1.Secret, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Secret{Secret: s}}, nil
}

func answerNode(n *mayflyv1.Node, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Node{Node: n}}, nil
}

func answerSettings(s *mayflyv1.Settings, err error) (*statev1.Result, error) {
	if err != nil {
		return nil, err
	}
	return &statev1.Result{Resource: &statev1.Result_Settings{Settings: s}}, nil
}
