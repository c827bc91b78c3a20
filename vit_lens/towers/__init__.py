"""What every transformer is made of here: its parts, its read-out, the algebra of its cached activations."""
