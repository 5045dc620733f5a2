"""Putting a student in the place of SAM3's image trunk, verified and accounted for."""
