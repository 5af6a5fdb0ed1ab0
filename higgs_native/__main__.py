from higgs_native_command import main


main()
