#!/bin/sh
# Packs the witness guest's initramfs: busybox, the virtio modules of one kernel, init and the witness.
# The same inputs give the same bytes.
#
#   build_initramfs.sh OUTPUT INIT WITNESS BUSYBOX MODULES_DIR      (MODULES_DIR: /lib/modules/VERSION)
set -eu
export LC_ALL=C
output=$1 init=$2 witness=$3 busybox=$4 modules_dir=$5
# Each after what it needs.
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
  failover net_failover virtio_net"

if ldd "$busybox" > /dev/null 2>&1; then
  echo "$0: $busybox needs shared libraries: install busybox-static" >&2
  exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/dev" "$root/modules" "$root/proc" "$root/sys" "$root/tmp"
install -m 755 "$busybox" "$root/bin/busybox"
install -m 755 "$witness" "$root/bin/witness"
strip "$root/bin/witness"
install -m 755 "$init" "$root/init"
: > "$root/modules/order"
for module in $modules; do
  file=$(find "$modules_dir" -name "$module.ko" -o -name "$module.ko.xz" -o -name "$module.ko.zst" | head -n 1)
  case $file in
    # Built into the kernel.
    "") grep -q "/$module\.ko" "$modules_dir/modules.builtin" && continue
        echo "$0: no module $module under $modules_dir: install the kernel's package again" >&2
        exit 1 ;;
    *.xz) xz -dc "$file" > "$root/modules/$module.ko" ;;
    *.zst) zstd -qdc "$file" > "$root/modules/$module.ko" ;;
    *) cp "$file" "$root/modules/$module.ko" ;;
  esac
  echo "$module" >> "$root/modules/order"
done
chmod 644 "$root"/modules/*
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | sort | cpio --quiet --reproducible --owner=0:0 -o -H newc) | gzip -n -6 > "$output.new"
mv "$output.new" "$output"
