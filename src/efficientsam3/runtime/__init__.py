"""What every step stands on. Nothing here knows about images, stores or models.

Read `run` first: it shows how a long step puts the others together. `errors` has `UserError`, the one exception whose
message is for users, and `endings` gives every other one a sentence and a log. `files` writes atomically; `logging`,
`progress`, `tables` and `console` print. `request` describes a command's arguments as typed fields. `device` chooses
where to compute, without importing PyTorch; `environment` reads counts from variables; `distributed` joins the
processes that torchrun started. `signals` turns SIGTERM into a request to stop, and `launch` passes signals on to a
command or to torchrun's workers. `memory` and `random_state` serve training.
"""
