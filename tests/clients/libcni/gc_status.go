//go:build gc_status

package main

import (
	"context"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// collect removes all attachments to the list but that of the call.
func collect(ctx context.Context, library *libcni.CNIConfig, list *libcni.NetworkConfigList, call *libcni.RuntimeConf) error {
	valid := []types.GCAttachment{{ContainerID: call.ContainerID, IfName: call.IfName}}
	return library.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
}

// status asks each plugin of the list whether add would work.
func status(ctx context.Context, library *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
	return library.GetStatusNetworkList(ctx, list)
}
