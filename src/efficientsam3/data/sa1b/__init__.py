"""Acquiring SA-1B: downloading its archives and arranging them as a dataset.

`download` fetches the tars that `links` names, each by `fetch`, which resumes and retries. `reorganise` then puts
images and annotations into place: `tars` reads untrusted tars, `placing` is one process's share of the work, and
`pairs` publishes an image only together with its annotation.
"""
