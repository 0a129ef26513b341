package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/volpool/volpool/lease"
)

// Admin is what an operator does with a pool's volumes, on both sides of the
// truth: the table, and EC2.
type Admin struct {
	Registry lease.Registry
	EC2      *EC2
	Region   string // for the messages
}

// Add registers volumes. All of them are looked at before the first is changed.
func (a Admin) Add(ctx context.Context, pool string, volumes []string) ([]lease.Record, error) {
	if _, err := a.Registry.Pool(ctx, pool); err != nil {
		return nil, err
	}
	infos := make([]VolumeInfo, len(volumes))
	for i, id := range volumes {
		info, err := a.fit(ctx, id)
		if err != nil {
			return nil, err
		}
		infos[i] = info
	}
	var added []lease.Record
	for _, v := range infos {
		// The tag first: the runtime role may attach only what carries it.
		if err := a.EC2.Tag(ctx, v.ID, pool); err != nil {
			return added, err
		}
		r, err := a.Registry.Add(ctx, pool, v.Zone, lease.Volume{ID: v.ID, SizeGiB: v.SizeGiB, Created: v.Created, FromSnapshot: v.FromSnapshot})
		if err != nil {
			return added, err
		}
		added = append(added, r)
	}
	return added, nil
}

// fit refuses a volume that cannot serve.
func (a Admin) fit(ctx context.Context, id string) (VolumeInfo, error) {
	if err := lease.CheckVolumeID(id); err != nil {
		return VolumeInfo{}, err
	}
	info, err := a.EC2.Volume(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return VolumeInfo{}, fmt.Errorf("volume %s does not exist in %s", id, a.Region)
	case err != nil:
		return VolumeInfo{}, err
	case info.MultiAttach:
		return VolumeInfo{}, fmt.Errorf("volume %s is a multi-attach volume: EC2 would not keep a second instance off it", id)
	}
	r, err := a.Registry.Find(ctx, id)
	switch {
	case err == nil && r.State != lease.Retired:
		return VolumeInfo{}, &lease.RegisteredError{Record: r}
	case err != nil && !errors.Is(err, lease.ErrNoVolume):
		return VolumeInfo{}, err
	case info.State != types.VolumeStateAvailable:
		return VolumeInfo{}, fmt.Errorf("volume %s is not available: EC2 shows it %s", id, shown(info))
	}
	return info, nil
}

// Retire ends a volume's service, and with del deletes it in EC2, for good.
func (a Admin) Retire(ctx context.Context, volume string, del bool) (lease.Record, error) {
	r, err := a.Registry.Retire(ctx, volume)
	if err != nil || !del {
		return r, err
	}
	if err := a.EC2.Delete(ctx, volume); err != nil && !errors.Is(err, ErrNotFound) {
		return r, fmt.Errorf("retired, but not deleted: %w", err)
	}
	return r, nil
}
