"""Import paths from before `embed` and `train` had folders of their own; each module re-exports."""
