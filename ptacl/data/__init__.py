"From files and tables, in whatever format, to a cohort on disk and to the pairs that training reads."
