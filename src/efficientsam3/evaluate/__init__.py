"""Measuring students: masks against ground truth (`masks`), the HTML report (`report`), and what a training observes.

`run` is the whole evaluation of `efficientsam3 evaluate`; `observers` has the mask probe and the feature figures that a
training shows after each epoch.
"""
