"""Measuring and showing: parameter comparison, feature pictures, loss curves."""
