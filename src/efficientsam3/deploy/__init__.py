"""From a trained student to a model that answers prompts: merge and predict."""
