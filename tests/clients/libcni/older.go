//go:build !gc_status

package main

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/libcni"
)

var errOlder = errors.New("the library is older than 1.2, which brought gc and status")

func collect(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error {
	return errOlder
}

func status(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList) error {
	return errOlder
}
