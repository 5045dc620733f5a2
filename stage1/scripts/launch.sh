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
  # By way of Python, which passes signals on to the workers; see efficientsam3/runtime/launch.py.
  exec python -m efficientsam3.runtime.launch "$gpus" --nnodes "${NNODES:-1}" --nproc_per_node "$gpus" \
    "${rendezvous[@]}" "$script" "${given[@]}" "${flags[@]}"
}
