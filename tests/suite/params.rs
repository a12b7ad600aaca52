//! Parameters of a notebook: the default, a file over it, the environment over both.

use crate::support::scratch;
use cltlab::notebook::param;
use cltlab::ErrorKind;

#[test]
fn parameters_in_their_order() {
    let file = scratch("params").join("params.json");
    std::fs::write(&file, r#"{"suite_steps": 300, "suite_rate": "0.5", "suite_word": " two words ", "suite_flag": true}"#).unwrap();
    assert_eq!(param("suite_steps", 100usize).unwrap(), 100, "the default");
    std::env::set_var("CLTLAB_PARAMS", &file);
    assert_eq!(param("suite_steps", 100usize).unwrap(), 300, "the file over the default");
    assert_eq!(param("suite_rate", 0.1f64).unwrap(), 0.5);
    assert_eq!(param("suite_word", String::new()).unwrap(), " two words ");
    assert!(param("suite_flag", false).unwrap());
    assert_eq!(param("suite_absent", 7u32).unwrap(), 7);
    std::env::set_var("CLTLAB_SUITE_STEPS", "42");
    assert_eq!(param("suite_steps", 100usize).unwrap(), 42, "the environment over the file");
    std::env::set_var("CLTLAB_SUITE_STEPS", "many");
    let error = param("suite_steps", 100usize).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    for word in ["suite_steps", "\"many\"", "usize"] {
        assert!(error.to_string().contains(word), "'{error}' does not say {word}");
    }
    std::fs::write(&file, "[1]").unwrap();
    assert_eq!(param("suite_absent", 7u32).unwrap_err().kind(), ErrorKind::BadFile);
    std::env::remove_var("CLTLAB_PARAMS");
    assert_eq!(param("suite absent", 7u32).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(param("params", 7u32).unwrap_err().kind(), ErrorKind::BadInput);
}
