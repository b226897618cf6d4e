#!/usr/bin/env bash
# Vulkan for real, without a GPU: Mesa's software driver is a Vulkan device on any machine. llmrun is set up with Vulkan in a
# folder that holds Debian 13, and scripts/check_device.py and check_offload.py run there: what works, where it lies, what it
# takes. How fast it is means nothing, and is not shown.
# usage: scripts/check_vulkan.sh [--dir DIR] [--set-up] [SHAPE...]
#   --dir DIR   where that Debian is, or will be: 3 GB, kept, so that the next call neither fetches nor builds
#   --set-up    no checks: a quarter of an hour for Debian and its packages, and some 20 minutes of building on two cores
#   SHAPE...    of check_offload.py, in place of its own choice; "none": check_device.py alone
# As root (chroot), on a Debian or Ubuntu with debootstrap.
set -euo pipefail
here=$(readlink -f "${BASH_SOURCE[0]}")
root=${here%/scripts/*}
home=~
dir=${XDG_CACHE_HOME:-$home/.cache}/llmrun/debian-13
only_set_up=
shapes=(llama-1.2b qwen3-0.6b mixtral-8x7b qwen3-30b-a3b gpt-oss-20b gemma2-2b gemma3-1b phi3-mini deepseek-v2-lite granite-4-h-tiny
  lfm2-1.2b mamba2-2.7b qwen3.5-0.8b)
while [ $# -gt 0 ]; do
  case $1 in
    --dir) dir=$(readlink -m "${2:?a folder}") && shift 2 ;;
    --set-up) only_set_up=1 && shift ;;
    -*) sed -n '2,10s/^# \?//p' "$here" >&2 && exit 2 ;;
    *) shapes=("$@") && break ;;
  esac
done
[ "$(id -u)" = 0 ] || { echo "chroot needs root: sudo $0" >&2 && exit 2; }
command -v debootstrap >/dev/null || { echo "debootstrap is missing: sudo apt install debootstrap" >&2 && exit 2; }

inside() { # COMMAND...: in that Debian, with its own /proc and /dev, which go when the command ends
  unshare --mount bash -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$dir" \
    env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    GGML_VK_VISIBLE_DEVICES=0 LLMRUN_CMAKE_ARGS=-DGGML_VULKAN=on "$@"
}

if [ ! -e "$dir/complete" ]; then
  # From where this machine has its own packages.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
  [ -e "$dir/etc/debian_version" ] || debootstrap --variant=minbase --include=ca-certificates trixie "$dir" ${mirror:+"$mirror"} >&2
  # Whom this machine trusts: a proxy, perhaps.
  if [ -r /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/"; fi
  inside sh -c 'apt-get -q update && apt-get -q -y --no-install-recommends install \
    python3-venv g++ gcc git libvulkan-dev glslc spirv-headers mesa-vulkan-drivers' >&2
  touch "$dir/complete"
fi
mkdir -p "$dir/llmrun"
find "$dir/llmrun" -mindepth 1 -maxdepth 1 ! -name '.venv*' -exec rm -rf {} +
git -C "$root" ls-files -z --cached --others --exclude-standard --deduplicate |
  (cd "$root" && tar --null --ignore-failed-read -T - -c) | tar -x --no-same-owner -C "$dir/llmrun"
inside sh -c 'cd /llmrun && ./scripts/setup'
[ -z "$only_set_up" ] || exit 0
status=0
inside sh -c 'cd /llmrun && exec .venv/bin/python scripts/check_device.py Vulkan0' || status=1
[ "${shapes[*]}" = none ] ||
  inside sh -c 'cd /llmrun && exec .venv/bin/python scripts/check_offload.py --device Vulkan0 "$@"' sh "${shapes[@]}" || status=1
exit $status
