"""The fixed text of batch scripts for SLURM: no word of a user stands in it."""

from __future__ import annotations

from typing import Final

FUNCTIONS: Final = r"""
# Sets `base` to the first of 128 ports that nobody on this node listens on and that no other search has claimed.
# $1 says where to begin. The claim is a lock that ends with this shell.
claim_ports() {
  local listening block port hex try claim
  listening=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
    awk '$4 == "0A" { print substr($2, length($2) - 3) }') || true
  for ((try = 0; try < 170; try++)); do
    block=$((($1 + try) % 170))
    base=$((10000 + 128 * block))
    for ((port = base; port < base + 128; port++)); do
      printf -v hex '%04X' "$port"
      [[ $listening != *"$hex"* ]] || continue 2
    done
    claim=/tmp/evomerge-ports-$base.lock
    [ -e "$claim" ] || { : >>"$claim"; } 2>/dev/null || continue
    { exec 9<"$claim"; } 2>/dev/null || continue
    ! command -v flock >/dev/null || flock --nonblock 9 || continue
    return 0
  done
  echo "evomerge: no free ports on $(hostname)" >&2
  return 1
}

# Runs the search, notes its process for the batch script, and how it ended.
# shellcheck disable=SC2329 # called by on_node
drive() {
  local driver code
  "$@" &
  driver=$!
  echo "$driver" >"$shared/driver.pid"
  code=0
  wait "$driver" || code=$?
  echo "$code" >"$shared/driver.part"
  mv "$shared/driver.part" "$shared/driver.exit"
  return "$code"
}

# What every node does: claim ports and a folder of its own, start Ray, and on the first node run the search.
# shellcheck disable=SC2329 # called by the shells that srun starts
on_node() {
  local base code=0
  folder=$tmp/em-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}-$SLURM_PROCID
  mkdir -m 700 "$folder" || return 1
  trap 'rm -rf "$folder"' EXIT
  trap 'exit 143' TERM # children get it too, and end first
  claim_ports "$SLURM_JOB_ID" || return 1
  export RAY_TMPDIR=$folder
  local options=(
    --num-cpus="${cpus:-$(nproc)}" --num-gpus="$gpus" --temp-dir="$folder" --disable-usage-stats
    --dashboard-host=127.0.0.1 --dashboard-port=$((base + 1)) --ray-client-server-port=$((base + 2))
    --node-manager-port=$((base + 3)) --object-manager-port=$((base + 4)) --metrics-export-port=$((base + 5))
    --dashboard-agent-grpc-port=$((base + 6)) --dashboard-agent-listen-port=$((base + 7))
    --runtime-env-agent-port=$((base + 8)) --min-worker-port=$((base + 9)) --max-worker-port=$((base + 127))
  )
  if [ "$start" = symmetric ]; then
    # shellcheck disable=SC2016 # expanded by the shell that runs it
    "${runner[@]}" ray symmetric-run --address "$address" --min-nodes "$min_nodes" "${options[@]}" -- \
      bash -c "$(declare -p shared); $(declare -f drive); "'drive "$@"' drive "${search[@]}" 2>&1 |
      grep --line-buffered -v '[[:space:]]VINFO scripts.py' # what ray stop says of every process
    code=${PIPESTATUS[0]}
  else
    start_and_drive || code=$?
  fi
  # a first node that cannot begin ends the job, or the others would wait for it
  [ "$SLURM_PROCID" != 0 ] || [ -e "$shared/driver.exit" ] || echo "$code" >"$shared/driver.exit"
  return "$code"
}

# As `ray symmetric-run`, but it stops no processes but its own.
# shellcheck disable=SC2329 # called by on_node
start_and_drive() {
  local ray code=0 waited
  if [ "$SLURM_PROCID" = 0 ]; then
    "${runner[@]}" ray start --head --node-ip-address="${address%:*}" --port="${address##*:}" --block "${options[@]}" &
    ray=$!
  fi
  for ((waited = 0; waited < 300; waited += 3)); do
    ! "${runner[@]}" ray health-check --address "$address" >/dev/null 2>&1 || break
    sleep 3
  done
  if [ "$SLURM_PROCID" = 0 ]; then
    kill -0 "$ray" || return 1
    drive "${runner[@]}" "${search[@]}" || code=$?
    kill -TERM "$ray" && wait "$ray" || true
    return "$code"
  fi
  "${runner[@]}" ray start --address "$address" --block "${options[@]}"
}
"""

BATCH: Final = r"""
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "This is a batch script: start it with sbatch." >&2
  exit 2
fi
unset RAY_ADDRESS RAY_AUTH_TOKEN
set -euo pipefail

# A folder for this job on the shared file system, for the token and the driver's state; nobody else may read it.
mkdir -p "$(dirname "$run_dir")"
shared=$run_dir.slurm-$SLURM_JOB_ID
rm -rf "$shared"
mkdir -m 700 "$shared"
# this node's folder too, should its task have had to be killed
trap 'rm -rf "$shared" "$tmp/em-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}-0"' EXIT
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$shared/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$shared/token
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a node that is told to end would ask a head that is gone

# The first node, where this script runs, leads: its address is one that the others can reach.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=${EVOMERGE_HEAD_IP:-$(getent ahostsv4 "${nodes[0]}" | awk '$1 !~ /^127\./ { print $1; exit }')}
head_ip=${head_ip:-$(hostname -I | tr ' ' '\n' | awk '/\./ && !/^127\./ { print; exit }')}
if [ -z "$head_ip" ]; then
  echo "No address of ${nodes[0]} that other nodes can reach; set EVOMERGE_HEAD_IP." >&2
  exit 2
fi
claim_ports "$SLURM_JOB_ID"
address=$head_ip:$base
search+=(--set "cluster.address=\"$address\"")
export RAY_ADDRESS=$address

# Before the time limit SLURM sends TERM to this shell alone; the search finishes what runs and exits with 75.
# shellcheck disable=SC2329 # called by the trap
drain() {
  local driver
  driver=$(cat "$shared/driver.pid" 2>/dev/null) || return 0
  if { tr '\0' '\n' <"/proc/$driver/environ"; } 2>/dev/null | grep -qx "SLURM_JOB_ID=$SLURM_JOB_ID"; then
    kill -TERM "$driver"
  fi
}
trap drain TERM

# A step has to ask again for what the job has got.
amounts=()
[ -z "$cpus" ] || amounts+=(--cpus-per-task="$cpus")
[ "$gpus" = 0 ] || amounts+=(--gpus-per-node="$gpus")
srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 \
  --cpu-bind=none "${amounts[@]}" \
  bash -c "$(declare -p shared address search runner tmp gpus cpus min_nodes start)
$(declare -f claim_ports drive start_and_drive on_node)
on_node" &
step=$!
# The other nodes would notice only after a minute that the search has ended: they are told after twenty looks,
# and after forty this script goes on without them: what is left of a job ends with it.
over=0
while kill -0 "$step" 2>/dev/null; do
  [ ! -e "$shared/driver.exit" ] || over=$((over + 1))
  [ "$over" -ne 20 ] || kill -TERM "$step" || true
  [ "$over" -ne 40 ] || kill -KILL "$step" || true
  sleep "${EVOMERGE_POLL_S:-1}" &
  wait $! || true
done
code=0
wait "$step" || code=$?
[ ! -e "$shared/driver.exit" ] || code=$(cat "$shared/driver.exit")
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$requeues" ]; then
  echo "The search was stopped before its end; it is queued again."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
