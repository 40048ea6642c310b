"From prepared recordings to tokens, embeddings and losses."
