"""Checking a dataset, for `efficientsam3 data check`.

Start at `run.check_dataset`. `files` is one process's share: it decodes every image and parses every annotation.
`coco_problems` compares COCO's masks with their boxes and areas, as `annotations.sa1b` does for SA-1B's. The kinds of
problems are in `data.problems`.
"""
