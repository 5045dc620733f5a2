"""What every step stands on: errors, atomic files, devices, distributed set-up, logging, progress."""
