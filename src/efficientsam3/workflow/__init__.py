"""From images to a deployed model in one command: `request`, `settings` (the configurations), `steps`, `run`."""
