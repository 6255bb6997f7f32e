"""The embedded hospital: a cohort of made-up patients, an archive that speaks DICOMweb, and the paper that covers them."""
