"""From pictures to a deployed model: the single commands, one after the other."""
