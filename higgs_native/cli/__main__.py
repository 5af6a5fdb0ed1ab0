from higgs_native.cli import main


main()
