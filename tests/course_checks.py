"Every check of the course, by the name of its exercise."
from ptacl.course import beat_checks, cleaning_checks, gap_checks, heart_checks, map_checks, moment_checks, patient_checks, view_checks

MODULES = (view_checks, cleaning_checks, beat_checks, gap_checks, patient_checks, moment_checks, map_checks, heart_checks) # as the sessions
CHECKS = {name.removeprefix("check_"): f for module in MODULES for name, f in vars(module).items() if name.startswith("check_")}
