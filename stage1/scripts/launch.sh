# Sourced by the launchers of this folder: start one stage1 script on every process of this machine.
#
#   launch SCRIPT DEFAULT_CFG [KEY=VALUE | FLAG]...
#
# Keys, as arguments or environment variables: CFG DATA_PATH OUTPUT BATCH_SIZE GPUS MASTER_PORT NNODES NODE_RANK
# RDZV_BACKEND RDZV_ENDPOINT. Everything else is passed to the script. Where there is no GPU, GPUS counts CPU processes.

launch() {
  local script=$1 default_cfg=$2 flags=() argument
  shift 2
  for argument in "$@"; do
    case $argument in
      CFG=* | DATA_PATH=* | OUTPUT=* | BATCH_SIZE=* | GPUS=* | MASTER_PORT=* | NNODES=* | NODE_RANK=* | RDZV_BACKEND=* | RDZV_ENDPOINT=*)
        local "${argument%%=*}=${argument#*=}" ;;
      [A-Z]*=*)
        echo "${0##*/}: ${argument%%=*} is not a key of the launchers: use CFG DATA_PATH OUTPUT BATCH_SIZE GPUS MASTER_PORT NNODES NODE_RANK RDZV_BACKEND RDZV_ENDPOINT, or --opts KEY VALUE." >&2
        return 2 ;;
      *) flags+=("$argument") ;;
    esac
  done

  local gpus=${GPUS:-8}
  if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "${0##*/}: GPUS=$gpus is not a number of processes: give 1 or more." >&2
    return 2
  fi
  if [[ ${NNODES:-1} != 1 && -z ${RDZV_ENDPOINT:-} ]]; then
    echo "${0##*/}: NNODES=$NNODES needs RDZV_ENDPOINT=HOST:PORT, a machine and free port that all of them reach." >&2
    return 2
  fi
  # In front of the other flags: --opts takes everything that follows it.
  local given=(--cfg "${CFG:-$default_cfg}")
  [[ -n ${DATA_PATH:-} ]] && given+=(--data-path "$DATA_PATH")
  [[ -n ${OUTPUT:-} ]] && given+=(--output "$OUTPUT")
  [[ -n ${BATCH_SIZE:-} ]] && given+=(--batch-size "$BATCH_SIZE")

  # Bad input is found here, by one plain process: torchrun turns every worker's exit code into 1.
  local nodes=${NNODES:-1}
  WORLD_SIZE=$((gpus * ${nodes%%:*})) python "$script" "${given[@]}" --dry-run "$gpus" "${flags[@]}" || return

  local rendezvous=(--master_port "${MASTER_PORT:-29500}" --node_rank "${NODE_RANK:-0}")
  if [[ -n ${RDZV_BACKEND:-} || -n ${RDZV_ENDPOINT:-} ]]; then
    rendezvous=(--rdzv_backend "${RDZV_BACKEND:-c10d}" --rdzv_endpoint "${RDZV_ENDPOINT:-localhost:29400}" --rdzv_id "${RDZV_ID:-efficientsam3}")
  elif [[ ${NNODES:-1} == 1 && -z ${MASTER_PORT:-} ]]; then
    rendezvous=(--standalone)  # a free port, so that two runs on one machine do not collide
  fi
  # torchrun gives each process one thread unless told; share the cores instead.
  if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    local cores
    cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
    export OMP_NUM_THREADS=$((cores / gpus > 0 ? cores / gpus : 1))
  fi
  run_workers --nnodes "${NNODES:-1}" --nproc_per_node "$gpus" "${rendezvous[@]}" "$script" "${given[@]}" "${flags[@]}"
}

# torchrun, but SIGTERM and SIGUSR1 go to the workers themselves: torchrun would give them 30 s from SIGTERM on, return 1
# even if they saved and ended well, and die of SIGUSR1. Returns 0 where the workers say that everything is saved.
run_workers() {
  local code=0 saved
  saved=$(mktemp -d)/saved
  export EFFICIENTSAM3_SAVED=$saved
  set -m  # a process group of its own: what a terminal or scheduler sends to this one comes by way of this shell alone
  (trap '' USR1; exec torchrun "$@") &
  set +m
  workers_of=$!
  trap 'signal_workers TERM' TERM HUP
  trap 'signal_workers USR1' USR1
  trap 'signalled=1; kill -INT "$workers_of"' INT
  while true; do
    signalled="" code=0
    wait "$workers_of" || code=$?
    [[ -n $signalled ]] || break  # else the signal ended `wait`, and torchrun has yet to end
  done
  [[ -e $saved ]] && code=0
  rm -rf "${saved%/*}"
  return "$code"
}

signal_workers() {
  local workers
  signalled=1
  workers=$(cat /proc/"$workers_of"/task/*/children 2>/dev/null || pgrep -P "$workers_of" || true)
  if [[ -z $workers ]]; then
    kill -TERM "$workers_of"  # none has been started yet
    return
  fi
  # shellcheck disable=SC2086
  kill -"$1" $workers 2>/dev/null || true
}
