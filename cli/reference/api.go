package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const publicPackage = "mayfly.v1"

const preface = `# API reference

The gRPC API, package ` + "`mayfly.v1`" + `, on port 7070 over TLS. Every call carries the metadata
` + "`authorization: Bearer ID:SECRET`" + ` of an access key. An empty ` + "`namespace`" + ` means the key's own, or ` + "`default`" + `.
Errors carry a ` + "`google.rpc.ErrorInfo`" + ` detail with domain ` + "`mayfly`" + ` and one of the [reasons](#errorreason).

Generated from the comments in ` + "`proto/mayfly/v1`" + ` by ` + "`make generate`" + `.
`

// describe writes services with their methods, then messages, then enums.
func describe(w io.Writer, files *protoregistry.Files) {
	fmt.Fprint(w, preface)
	var all []protoreflect.FileDescriptor
	files.RangeFilesByPackage(publicPackage, func(f protoreflect.FileDescriptor) bool {
		all = append(all, f)
		return true
	})
	slices.SortFunc(all, func(a, b protoreflect.FileDescriptor) int { return strings.Compare(a.Path(), b.Path()) })
	fmt.Fprint(w, "\n# Services\n")
	for _, f := range all {
		each(f.Services(), func(s protoreflect.ServiceDescriptor) { describeService(w, s) })
	}
	fmt.Fprint(w, "\n# Messages\n")
	for _, f := range all {
		each(f.Messages(), func(m protoreflect.MessageDescriptor) { describeMessage(w, m) })
	}
	fmt.Fprint(w, "\n# Enums\n")
	for _, f := range all {
		each(f.Enums(), func(e protoreflect.EnumDescriptor) { describeEnum(w, e) })
	}
}

// list is what protoreflect's lists have in common.
type list[T any] interface {
	Len() int
	Get(int) T
}

func each[T any](l list[T], do func(T)) {
	for i := range l.Len() {
		do(l.Get(i))
	}
}

func describeService(w io.Writer, s protoreflect.ServiceDescriptor) {
	fmt.Fprintf(w, "\n## %s\n\n%s", s.Name(), paragraph(s))
	fmt.Fprint(w, "| method | request | answer | role | |\n|---|---|---|---|---|\n")
	each(s.Methods(), func(m protoreflect.MethodDescriptor) {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", m.Name(),
			messageLink(m.Input(), m.IsStreamingClient()), messageLink(m.Output(), m.IsStreamingServer()), roleOf(m), cell(m))
	})
}

func messageLink(m protoreflect.MessageDescriptor, stream bool) string {
	link := typeLink(m)
	if stream {
		return "stream of " + link
	}
	return link
}

// roleOf is the least role that may call m. The option is read by this program's own copy of its definition.
func roleOf(m protoreflect.MethodDescriptor) string {
	raw, err := proto.Marshal(m.Options())
	if err != nil {
		return "none"
	}
	options := m.Options().ProtoReflect().New().Interface()
	if err := proto.Unmarshal(raw, options); err != nil || !proto.HasExtension(options, mayflyv1.E_RequiredRole) {
		return "none"
	}
	role, _ := proto.GetExtension(options, mayflyv1.E_RequiredRole).(mayflyv1.Role)
	if role == mayflyv1.Role_ROLE_UNSPECIFIED {
		return "any key"
	}
	return strings.ToLower(strings.TrimPrefix(role.String(), "ROLE_"))
}

func describeMessage(w io.Writer, m protoreflect.MessageDescriptor) {
	fmt.Fprintf(w, "\n## %s\n\n%s", m.Name(), paragraph(m))
	if m.Fields().Len() == 0 {
		fmt.Fprint(w, "No fields.\n")
		return
	}
	fmt.Fprint(w, "| field | type | |\n|---|---|---|\n")
	each(m.Fields(), func(f protoreflect.FieldDescriptor) {
		fmt.Fprintf(w, "| `%s` | %s | %s |\n", f.Name(), fieldType(f), cell(f))
	})
}

func fieldType(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return fmt.Sprintf("map of %s to %s", fieldType(f.MapKey()), fieldType(f.MapValue()))
	case f.IsList():
		return "list of " + singleType(f)
	case f.HasOptionalKeyword():
		return "optional " + singleType(f)
	case f.ContainingOneof() != nil:
		return singleType(f) + ", one of " + string(f.ContainingOneof().Name())
	default:
		return singleType(f)
	}
}

func singleType(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return typeLink(f.Message())
	case protoreflect.EnumKind:
		return typeLink(f.Enum())
	default:
		return f.Kind().String()
	}
}

func typeLink(d protoreflect.Descriptor) string {
	if d.ParentFile().Package() != publicPackage {
		return string(d.FullName())
	}
	return fmt.Sprintf("[%s](#%s)", d.Name(), strings.ToLower(string(d.Name())))
}

func describeEnum(w io.Writer, e protoreflect.EnumDescriptor) {
	fmt.Fprintf(w, "\n## %s\n\n%s", e.Name(), paragraph(e))
	fmt.Fprint(w, "| value | number | |\n|---|---|---|\n")
	each(e.Values(), func(v protoreflect.EnumValueDescriptor) {
		fmt.Fprintf(w, "| `%s` | %d | %s |\n", v.Name(), v.Number(), cell(v))
	})
}

// comment is what stands above d in its file, in one line.
func comment(d protoreflect.Descriptor) string {
	text := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	return strings.Join(strings.Fields(text), " ")
}

func paragraph(d protoreflect.Descriptor) string {
	if c := comment(d); c != "" {
		return c + "\n\n"
	}
	return ""
}

func cell(d protoreflect.Descriptor) string {
	return strings.ReplaceAll(comment(d), "|", `\|`)
}
