"""From images to a deployed model in one command: `request`, `settings` (the configurations), `steps`, `run`.

`launcher` runs one step alone, as the documented launchers do.
"""
