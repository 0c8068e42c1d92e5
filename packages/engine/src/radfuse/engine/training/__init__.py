"""Everything that decides the numbers of a training, and nothing else: its code names the work folder."""
