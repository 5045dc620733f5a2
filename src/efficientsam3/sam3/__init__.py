"""The frozen, promptable rest of SAM3: detector, tracker, tokenizer, geometry."""
