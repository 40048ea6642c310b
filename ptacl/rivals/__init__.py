"From the same pairs to the methods that the paper compares itself with."
