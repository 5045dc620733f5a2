#!/usr/bin/env bash
# Train a student on the stored embeddings, e.g.
#   bash stage1/scripts/train_stage1_student.sh CFG=stage1/configs/es_rv_m.yaml DATA_PATH=data/sa-1b OUTPUT=output/stage1/repvit_m1 BATCH_SIZE=4 GPUS=1
set -euo pipefail
stage1=$(dirname "$(dirname "${BASH_SOURCE[0]}")")
exec python -m efficientsam3.workflow.launcher "$0" "$stage1/train_stage1.py" "$stage1/configs/es_rv_m.yaml" "$@"
