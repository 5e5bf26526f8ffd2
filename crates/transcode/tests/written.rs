//! The descriptor set that parsers are fed with is the one of the protos here. `PHALANX_WRITE=1` writes it.

#[test]
fn the_corpus_holds_the_descriptors_of_the_protos() {
    let mut compiler = protox::Compiler::new(["tests/protos"]).unwrap();
    compiler.include_imports(true);
    compiler.include_source_info(false);
    compiler.open_file("battle/v1/battle.proto").unwrap();
    let set = compiler.encode_file_descriptor_set();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fuzz/corpus/descriptors/battle.pb"
    );
    if std::env::var_os("PHALANX_WRITE").is_some() {
        std::fs::write(path, &set).unwrap();
    }
    assert!(
        std::fs::read(path).unwrap() == set,
        "{path} is of other protos"
    );
}
