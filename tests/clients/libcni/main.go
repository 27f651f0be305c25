// Command libcni calls CNI plugins through the reference library, as container
// runtimes do; tests/clients/test_libcni.py drives it.
//
//	libcni VERB CONFLIST [CONTAINER NETNS]
//
//	add       attach, print the result
//	check     compare with the result that add left in the cache
//	del       detach, and forget that result
//	cached    print the result that add left in the cache
//	version   print what each plugin of the list supports
//	validate  print the capabilities of the list, if every plugin serves its version
//	gc        remove all attachments but CONTAINER's, where the library has it
//	status    ask whether add would work, where the library has it
//	decode    print what Go's decoder makes of each text in the list in that file
//
// Rules
//
//  1. The environment is that of the library's own cnitool: CNI_PATH, CNI_IFNAME,
//     CNI_ARGS, CAP_ARGS (JSON, capability arguments); and CNI_CACHE, the folder of
//     the library's cache.
//  2. Whatever is printed is JSON on stdout. A failure exits with 1, and is the plugin's own
//     error (code, msg, details) if it gave one; otherwise its code is 0.
//  3. Nothing is decided here: what a plugin is asked, in which order and with which
//     prevResult, is the library's doing.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	printed, err := run(os.Args[1:])
	if err != nil {
		var given *types.Error
		if !errors.As(err, &given) {
			given = &types.Error{Msg: err.Error()}
		}
		printed = given
	}
	if printed != nil {
		if failed := json.NewEncoder(os.Stdout).Encode(printed); err == nil {
			err = failed
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run does what the arguments ask; what it returns is to be printed.
func run(arguments []string) (interface{}, error) {
	if len(arguments) != 2 && len(arguments) != 4 {
		return nil, errors.New("usage: libcni VERB CONFLIST [CONTAINER NETNS]")
	}
	if arguments[0] == "decode" {
		return decode(arguments[1])
	}
	list, err := libcni.ConfListFromFile(arguments[1])
	if err != nil {
		return nil, err
	}
	path := filepath.SplitList(os.Getenv("CNI_PATH"))
	library := libcni.NewCNIConfigWithCacheDir(path, os.Getenv("CNI_CACHE"), nil)
	ctx := context.Background()

	switch arguments[0] {
	case "version":
		return versions(ctx, library, list)
	case "validate":
		return library.ValidateNetworkList(ctx, list)
	case "status":
		return nil, status(ctx, library, list)
	}
	if len(arguments) != 4 {
		return nil, fmt.Errorf("%s needs a CONTAINER and a NETNS", arguments[0])
	}
	call, err := runtimeConf(arguments[2], arguments[3])
	if err != nil {
		return nil, err
	}
	switch arguments[0] {
	case "add":
		return library.AddNetworkList(ctx, list, call)
	case "check":
		return nil, library.CheckNetworkList(ctx, list, call)
	case "del":
		return nil, library.DelNetworkList(ctx, list, call)
	case "gc":
		return nil, collect(ctx, library, list, call)
	case "cached":
		return library.GetNetworkListCachedResult(list, call)
	}
	return nil, fmt.Errorf("no such verb: %s", arguments[0])
}

// capabilities is what a plugin in Go would declare for capability arguments
// that are structs, values and lists.
type capabilities struct {
	Bandwidth struct {
		IngressRate int `json:"ingressRate,omitempty"`
		EgressRate  int `json:"egressRate,omitempty"`
	} `json:"bandwidth"`
	DNS *struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
	} `json:"dns,omitempty"`
	Mask string `json:"mask,omitempty"`
}

// decode returns, for each text of the JSON list in the file, what it says of capabilities.
func decode(file string) (interface{}, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var texts []string
	if err := json.Unmarshal(content, &texts); err != nil {
		return nil, err
	}
	decoded := make([]capabilities, len(texts))
	for index, text := range texts {
		if err := json.Unmarshal([]byte(text), &decoded[index]); err != nil {
			return nil, fmt.Errorf("%s: %w", text, err)
		}
	}
	return decoded, nil
}

// versions returns the versions of the specification that each plugin of the list supports.
func versions(ctx context.Context, library *libcni.CNIConfig, list *libcni.NetworkConfigList) (interface{}, error) {
	supported := map[string][]string{}
	for _, plugin := range list.Plugins {
		info, err := library.GetVersionInfo(ctx, plugin.Network.Type)
		if err != nil {
			return nil, err
		}
		supported[plugin.Network.Type] = info.SupportedVersions()
	}
	return supported, nil
}

// runtimeConf returns the call's parameters, from the arguments and the environment.
func runtimeConf(container, netns string) (*libcni.RuntimeConf, error) {
	call := &libcni.RuntimeConf{ContainerID: container, NetNS: netns, IfName: "eth0"}
	if name := os.Getenv("CNI_IFNAME"); name != "" {
		call.IfName = name
	}
	if text := os.Getenv("CAP_ARGS"); text != "" {
		if err := json.Unmarshal([]byte(text), &call.CapabilityArgs); err != nil {
			return nil, fmt.Errorf("CAP_ARGS: %w", err)
		}
	}
	if text := os.Getenv("CNI_ARGS"); text != "" {
		for _, pair := range strings.Split(text, ";") {
			key, value, found := strings.Cut(pair, "=")
			if !found {
				return nil, fmt.Errorf("CNI_ARGS: %q is not KEY=VALUE", pair)
			}
			call.Args = append(call.Args, [2]string{key, value})
		}
	}
	return call, nil
}
