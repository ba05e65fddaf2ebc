//! (nifti)
