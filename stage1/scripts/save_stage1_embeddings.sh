#!/usr/bin/env bash
# Export the teacher's embeddings, e.g.
#   bash stage1/scripts/save_stage1_embeddings.sh CFG=stage1/configs/teacher/sam_vit_huge_sa1b.yaml DATA_PATH=data/sa-1b OUTPUT=output/stage1_teacher GPUS=1
set -euo pipefail
stage1=$(dirname "$(dirname "${BASH_SOURCE[0]}")")
exec python -m efficientsam3.workflow.launcher "$0" "$stage1/save_embedding_stage1.py" "$stage1/configs/teacher/sam_vit_huge_sa1b.yaml" "$@"
